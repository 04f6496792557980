//! The text of the settings, which tells the line of what is wrong with them.

use super::SettingsError;
use std::fmt;

/// The text settings came from, kept to tell the line of a fault found later.
#[derive(Clone, Debug, Default)]
pub(super) struct Source {
    pub(super) file: String,
    pub(super) text: String,
}

impl Source {
    pub(super) fn line_at(&self, offset: usize) -> usize {
        1 + self.text.bytes().take(offset).filter(|&byte| byte == b'\n').count()
    }

    /// The line of `section.key`, or of a top-level key if `section` is empty; 1 if the file does not name it.
    fn line_of(&self, section: &str, key: &str) -> usize {
        let offset = toml::de::DeTable::parse(&self.text).ok().and_then(|root| {
            let table = root.get_ref();
            let table = if section.is_empty() { table } else { table.get(section)?.get_ref().as_table()? };
            table.keys().find(|name| name.get_ref() == key).map(|name| name.span().start)
        });
        offset.map_or(1, |offset| self.line_at(offset))
    }

    /// The line of a key of the `at`th table of an array of tables; that of the table if it does not name it.
    fn line_of_item(&self, array: &str, at: usize, key: &str) -> usize {
        let offset = toml::de::DeTable::parse(&self.text).ok().and_then(|root| {
            let item = root.get_ref().get(array)?.get_ref().as_array()?.get(at)?;
            let keys = item.get_ref().as_table()?;
            let named = keys.keys().find(|name| name.get_ref() == key).map(|name| name.span().start);
            Some(named.unwrap_or(item.span().start))
        });
        offset.map_or(1, |offset| self.line_at(offset))
    }

    pub(super) fn item_fault(&self, array: &str, at: usize, key: &str, message: impl fmt::Display) -> SettingsError {
        let (file, line) = (self.file.clone(), self.line_of_item(array, at, key));
        SettingsError::Fault { file, line, message: format!("{array}.{key}: {message}") }
    }

    pub(super) fn fault(&self, section: &str, key: &str, message: impl fmt::Display) -> SettingsError {
        let name = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
        SettingsError::Fault {
            file: self.file.clone(),
            line: self.line_of(section, key),
            message: format!("{name}: {message}"),
        }
    }
}
