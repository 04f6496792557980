//! The rows of some tables in an SQL dump, as `sqlite3 FILE .dump` and `mysqldump` write it.
//!
//! A dump is a program, and this is no database: only `CREATE TABLE`, for the order of columns, and `INSERT INTO` of plain
//! values are read; all other statements are passed over by their quotes and semicolons. The two programs quote names
//! differently, only MySQL's texts have backslash escapes, and only SQLite's are put together by functions. Which of them
//! wrote it is told by the comments before the first statement, where no tenant's text can be. Pure; one pass, whatever the
//! text.

use std::collections::HashMap;
use std::iter::Peekable;
use std::slice;

/// Functions in one another that make one text; `sqlite3` has one for each kind of line end.
const NESTING_MAX: usize = 4;

/// A row: its values by column, `None` for NULL, and the line it begins on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Row {
    pub(super) line: usize,
    pub(super) values: HashMap<String, Option<String>>,
}

/// What is wrong, and on which line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Wrong {
    pub(super) line: usize,
    pub(super) why: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Token {
    /// A keyword, number or plain name.
    Word(String),
    /// A name in quotes of names.
    Name(String),
    /// A text.
    Text(String),
    Sign(char),
}

impl Token {
    fn is(&self, word: &str) -> bool {
        matches!(self, Token::Word(text) if text.eq_ignore_ascii_case(word))
    }

    fn name(&self) -> Option<&str> {
        match self {
            Token::Word(name) | Token::Name(name) => Some(name),
            Token::Text(_) | Token::Sign(_) => None,
        }
    }
}

struct Scanner<'a> {
    rest: &'a str,
    line: usize,
    has_escapes: bool,
    /// The dump ended where more was to come.
    is_cut: bool,
}

impl Scanner<'_> {
    fn take(&mut self) -> Option<char> {
        let next = self.rest.chars().next()?;
        self.rest = &self.rest[next.len_utf8()..];
        self.line += usize::from(next == '\n');
        Some(next)
    }

    fn skip_past(&mut self, end: &str) {
        let len = self.rest.find(end).map_or(self.rest.len(), |at| at + end.len());
        self.line += self.rest[..len].matches('\n').count();
        self.rest = &self.rest[len..];
    }

    /// What is between quotes; a doubled quote stands for one. `None` if the dump ends before.
    fn quoted(&mut self, quote: char) -> Option<String> {
        let mut text = String::new();
        loop {
            // Said at the end of the dump, and taken back by the closing quote.
            self.is_cut = true;
            match self.take()? {
                end if end == quote && self.rest.starts_with(quote) => {
                    self.take();
                    text.push(quote);
                }
                end if end == quote => {
                    self.is_cut = false;
                    return Some(text);
                }
                '\\' if self.has_escapes && quote == '\'' => text.push(match self.take()? {
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    '0' => '\0',
                    'Z' => '\u{1a}',
                    other => other,
                }),
                other => text.push(other),
            }
        }
    }

    fn token(&mut self) -> Option<Token> {
        loop {
            // MySQL's conditional comments set variables only, and are passed over like others.
            if self.rest.starts_with("--") {
                self.skip_past("\n");
            } else if self.rest.starts_with("/*") {
                self.skip_past("*/");
            } else if self.rest.starts_with(char::is_whitespace) {
                self.take();
            } else {
                break;
            }
        }
        let is_word = |letter: char| letter.is_alphanumeric() || "_.-+".contains(letter);
        let len = self.rest.find(|letter| !is_word(letter)).unwrap_or(self.rest.len());
        if len > 0 {
            let (word, rest) = self.rest.split_at(len);
            self.rest = rest;
            return Some(Token::Word(word.to_owned()));
        }
        match self.take()? {
            '\'' => self.quoted('\'').map(Token::Text),
            quote @ ('"' | '`') => self.quoted(quote).map(Token::Name),
            '[' => {
                let len = self.rest.find(']')?;
                let name = self.rest[..len].to_owned();
                self.skip_past("]");
                Some(Token::Name(name))
            }
            sign => Some(Token::Sign(sign)),
        }
    }

    /// The tokens of the next statement, and the line it begins on. `None` at the end; a statement without its semicolon is
    /// none, because the dump was cut in it.
    fn statement(&mut self) -> Option<(usize, Vec<(usize, Token)>)> {
        let mut tokens = Vec::new();
        loop {
            let Some(token) = self.token() else {
                self.is_cut |= !tokens.is_empty();
                return None;
            };
            if token == Token::Sign(';') {
                return Some((tokens.first().map_or(self.line, |(line, _)| *line), tokens));
            }
            tokens.push((self.line, token));
        }
    }
}

/// The rows of the tables of these names, in the order of the dump. A table that is not there has none.
pub(super) fn rows(dump: &str, tables: &[&str]) -> Result<HashMap<String, Vec<Row>>, Wrong> {
    let is_comment = |line: &&str| line.is_empty() || line.starts_with("--") || line.starts_with("/*");
    let head: Vec<_> = dump.lines().take_while(is_comment).collect();
    let begins = |signs: [&str; 2]| head.iter().any(|line| signs.iter().any(|sign| line.starts_with(sign)));
    let is_titled = begins(["-- MySQL dump", "-- MariaDB dump"]);
    let has_escapes = is_titled || begins(["/*!", "/*M!"]);
    let mut scanner = Scanner { rest: dump, line: 1, has_escapes, is_cut: false };
    // What each program ends a dump with, if it began it so.
    let mut is_open = false;
    let is_completed =
        !is_titled || dump.trim_end().lines().next_back().is_some_and(|line| line.starts_with("-- Dump completed"));
    let mut columns: HashMap<String, Vec<String>> = HashMap::new();
    let mut found: HashMap<String, Vec<Row>> = HashMap::new();
    while let Some((line, tokens)) = scanner.statement() {
        let word = |at: usize, text: &str| tokens.get(at).is_some_and(|(_, token)| token.is(text));
        is_open = (is_open || word(0, "BEGIN")) && !word(0, "COMMIT");
        let mut at = match () {
            () if word(0, "CREATE") && word(1, "TABLE") => 2,
            () if word(0, "INSERT") && word(1, "INTO") => 2,
            () => continue,
        };
        if word(at, "IF") && word(at + 1, "NOT") && word(at + 2, "EXISTS") {
            at += 3;
        }
        let Some(table) = tokens.get(at).and_then(|(_, token)| token.name()).filter(|name| tables.contains(name))
        else {
            continue;
        };
        let rest = &tokens[at + 1..];
        if word(0, "CREATE") {
            columns.insert(table.to_owned(), columns_of(rest));
        } else {
            let known = columns.get(table).map(Vec::as_slice);
            found.entry(table.to_owned()).or_default().extend(insert(rest, known, line)?);
        }
    }
    if scanner.is_cut || is_open || !is_completed {
        return Err(Wrong { line: scanner.line, why: "the dump is cut off".to_owned() });
    }
    Ok(found)
}

/// The names of a table's columns, from what is between the parentheses of its definition.
fn columns_of(tokens: &[(usize, Token)]) -> Vec<String> {
    let mut depth = 0;
    let mut is_start = false;
    let mut names = Vec::new();
    for (_, token) in tokens {
        match token {
            Token::Sign('(') => {
                depth += 1;
                is_start = depth == 1;
                continue;
            }
            Token::Sign(')') => depth -= 1,
            Token::Sign(',') if depth == 1 => {
                is_start = true;
                continue;
            }
            token if is_start => {
                let constraints = ["PRIMARY", "UNIQUE", "FOREIGN", "CHECK", "CONSTRAINT", "KEY", "INDEX", "FULLTEXT"];
                let is_constraint = constraints.iter().any(|word| token.is(word));
                names.extend(token.name().filter(|_| !is_constraint).map(str::to_owned));
            }
            _ => {}
        }
        is_start = false;
    }
    names
}

/// The rows of what follows `INSERT INTO table`.
fn insert(tokens: &[(usize, Token)], known: Option<&[String]>, line: usize) -> Result<Vec<Row>, Wrong> {
    let wrong = |line: usize, why: &str| Wrong { line, why: why.to_owned() };
    let mut tokens = tokens.iter().peekable();
    let mut columns = known.map(<[String]>::to_vec);
    if tokens.next_if(|(_, token)| *token == Token::Sign('(')).is_some() {
        let mut named = Vec::new();
        for (line, token) in tokens.by_ref() {
            match token {
                Token::Sign(')') => break,
                Token::Sign(',') => {}
                token => named.push(token.name().ok_or_else(|| wrong(*line, "this is no column's name"))?.to_owned()),
            }
        }
        columns = Some(named);
    }
    let columns = columns.ok_or_else(|| wrong(line, "the table's columns were not named before"))?;
    match tokens.next() {
        Some((_, token)) if token.is("VALUES") => {}
        _ => return Err(wrong(line, "only INSERT INTO ... VALUES is understood")),
    }
    let mut rows = Vec::new();
    while let Some((line, token)) = tokens.next() {
        match token {
            Token::Sign(',') => continue,
            Token::Sign('(') => {}
            _ => return Err(wrong(*line, "a row in parentheses should be here")),
        }
        let mut values = Vec::new();
        loop {
            values.push(value(&mut tokens, 0).ok_or_else(|| wrong(*line, "only plain values are understood"))?);
            match tokens.next() {
                Some((_, Token::Sign(','))) => {}
                Some((_, Token::Sign(')'))) => break,
                _ => return Err(wrong(*line, "only plain values are understood")),
            }
        }
        if values.len() != columns.len() {
            return Err(wrong(*line, &format!("{} values for {} columns", values.len(), columns.len())));
        }
        rows.push(Row { line: *line, values: columns.iter().cloned().zip(values).collect() });
    }
    Ok(rows)
}

type Tokens<'a> = Peekable<slice::Iter<'a, (usize, Token)>>;

/// The next value, with `None` in it for NULL; `None`: it is not one. A text with line ends, or with other characters that a
/// terminal takes for its own, is `replace('…','…',char(N))` to `sqlite3`, one in another, and `unistr('…')` from 3.50 on.
fn value(tokens: &mut Tokens<'_>, depth: usize) -> Option<Option<String>> {
    let (_, token) = tokens.next()?;
    Some(Some(match token {
        token if token.is("NULL") => return Some(None),
        token if token.is("replace") && depth < NESTING_MAX => {
            sign(tokens, '(')?;
            let text = value(tokens, depth + 1)??;
            sign(tokens, ',')?;
            let mark = value(tokens, NESTING_MAX)??;
            sign(tokens, ',')?;
            let char = character(tokens)?;
            sign(tokens, ')')?;
            if mark.is_empty() { text } else { text.replace(&mark, char.encode_utf8(&mut [0; 4])) }
        }
        token if token.is("unistr") && depth < NESTING_MAX => {
            sign(tokens, '(')?;
            let text = value(tokens, NESTING_MAX)??;
            sign(tokens, ')')?;
            unescaped(&text)?
        }
        Token::Text(text) | Token::Word(text) => text.clone(),
        Token::Name(_) | Token::Sign(_) => return None,
    }))
}

fn sign(tokens: &mut Tokens<'_>, sign: char) -> Option<()> {
    tokens.next_if(|(_, token)| *token == Token::Sign(sign)).map(drop)
}

/// `char(N)`.
fn character(tokens: &mut Tokens<'_>) -> Option<char> {
    tokens.next_if(|(_, token)| token.is("char"))?;
    sign(tokens, '(')?;
    let number = value(tokens, NESTING_MAX)??;
    sign(tokens, ')')?;
    char::from_u32(number.parse().ok()?)
}

/// A text as SQLite's `unistr` reads it: with `\\`, `\XXXX`, `\uXXXX`, `\+XXXXXX` and `\UXXXXXXXX`.
fn unescaped(text: &str) -> Option<String> {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let (sign_len, digits_len) = match rest.chars().next()? {
            '\\' => (1, 0),
            'u' => (1, 4),
            '+' => (1, 6),
            'U' => (1, 8),
            _ => (0, 4),
        };
        let digits = rest.get(sign_len..sign_len + digits_len)?;
        plain.push(match digits {
            "" => '\\',
            digits => char::from_u32(u32::from_str_radix(digits, 16).ok()?)?,
        });
        rest = &rest[sign_len + digits_len..];
    }
    Some(plain + rest)
}
