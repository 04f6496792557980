//! No lock-prefixed instruction per packet (ARCHITECTURE.md, invariant 4): what every packet goes through, disassembled.
//!
//! Such an instruction costs as much as all else that is done with a small frame, and comes in unnoticed: by an atomic where
//! a plain load and store would do. Looked at are the functions that loop over a burst's packets, as they stand in this
//! program; one that is not there any more, since it was renamed or became part of another, fails, so that the list stays true.
//! What is done once a burst (a queue's try-lock) or once a station (a slot of the MAC table claimed) is elsewhere.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;

/// Functions that every packet goes through, by what their demangled names end with.
const PER_PACKET: [&str; 4] = [
    "RingSet<L>>::put_frames",
    "RingSet<L>>::send_plain",
    "<pipelines::Standard as switch::worker::Pipeline>::run",
    "pipelines::bridge::find",
];

/// Fails if one of them has such an instruction, or is not in the program.
pub(crate) fn check(program: &Path) -> Result<()> {
    let symbols = output(Command::new("nm").args(["--demangle", "--print-size"]).arg(program))?;
    for name in PER_PACKET {
        let places: Vec<(u64, u64)> = symbols.lines().filter_map(|line| place(line, name)).collect();
        ensure!(
            !places.is_empty(),
            "{name} is no function of its own any more: benches/src/locks.rs looks at another then"
        );
        for (start, end) in places {
            let range = [format!("--start-address={start}"), format!("--stop-address={end}")];
            let code = output(Command::new("objdump").args(["-d", "--no-show-raw-insn"]).args(range).arg(program))?;
            let found: Vec<&str> = code.lines().filter(|line| is_locked(line)).collect();
            ensure!(found.is_empty(), "{name} has lock-prefixed instructions, at each packet:\n{}", found.join("\n"));
        }
    }
    println!("no lock-prefixed instruction per packet: {}", PER_PACKET.join(", "));
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().context("binutils is not installed")?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Begin and end of a function whose name ends so: address, size, kind and name a line.
fn place(line: &str, name: &str) -> Option<(u64, u64)> {
    let mut words = line.splitn(4, ' ');
    let number = |word: &str| u64::from_str_radix(word, 16).ok();
    let (start, len) = (number(words.next()?)?, number(words.next()?)?);
    let is_code = words.next()?.eq_ignore_ascii_case("t");
    (is_code && words.next()?.ends_with(name)).then_some((start, start + len))
}

/// Whether a line of the listing is such an instruction; an exchange with memory locks without saying so.
fn is_locked(line: &str) -> bool {
    let Some((_, instruction)) = line.split_once(":\t") else { return false };
    let instruction = instruction.trim_start();
    instruction.starts_with("lock ") || (instruction.starts_with("xchg") && instruction.contains('('))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_that_locks_the_bus_is_told_from_others() {
        for locked in
            ["  3eba82:\tlock cmpxchg %rcx,(%rdx,%r8,8)", "  1:\txchg   %eax,(%rdi)", "  2:\tlock incq 8(%rax)"]
        {
            assert!(is_locked(locked), "{locked}");
        }
        for plain in
            ["  3:\txchg   %ax,%ax", "  4:\tmov    (%rdi),%eax", "0000000000001000 <lock >:", "  5:\tcmpxchg_x"]
        {
            assert!(!is_locked(plain), "{plain}");
        }
    }

    #[test]
    fn a_function_is_found_by_the_end_of_its_name_and_only_if_it_is_one() {
        let line = "00000000005df5d0 0000000000000010 t vhost::port::rx::<impl vhost::port::RingSet<L>>::put_frames";
        assert_eq!(place(line, PER_PACKET[0]), Some((0x5d_f5d0, 0x5d_f5e0)));
        assert_eq!(place(line, PER_PACKET[1]), None);
        assert_eq!(place(&line.replace(" t ", " r "), PER_PACKET[0]), None);
        assert_eq!(place("                 U memcpy", "memcpy"), None);
    }
}
