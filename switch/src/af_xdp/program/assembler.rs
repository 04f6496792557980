//! A program for the kernel, put together instruction by instruction (linux/bpf.h), with jumps to places that are named before it is
//! known where they are. Nothing here knows what a program is for.

/// An instruction as the kernel reads it: operation, registers, offset and number.
pub(in crate::af_xdp) type Instruction = u64;

/// A register. R0: what a call answers; R1 to R5: what it is asked; R6 to R9 survive it; R10: the end of the stack.
pub(super) type Register = u8;
pub(super) const R0: Register = 0;
pub(super) const R1: Register = 1;
pub(super) const R2: Register = 2;
pub(super) const R3: Register = 3;
pub(super) const R4: Register = 4;
pub(super) const R6: Register = 6;
pub(super) const R7: Register = 7;
pub(super) const R8: Register = 8;
pub(super) const R9: Register = 9;
pub(super) const R10: Register = 10;

/// How many bytes are loaded or stored (`BPF_B`, `BPF_H`, `BPF_W`, `BPF_DW`).
#[derive(Clone, Copy)]
pub(super) enum Size {
    One = 0x10,
    Two = 0x08,
    Four = 0x00,
    Eight = 0x18,
}

/// A place in the program that is jumped to; where it is may be said later.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Label(usize);

/// Puts instructions behind each other.
#[derive(Default)]
pub(super) struct Assembler {
    instructions: Vec<Instruction>,
    /// By label: the instruction it stands before.
    labels: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn put(&mut self, operation: u8, to: Register, from: Register, offset: i16, number: i32) {
        let registers = from << 4 | to;
        let low = [operation, registers, offset.to_ne_bytes()[0], offset.to_ne_bytes()[1]];
        let number = number.to_ne_bytes();
        let bytes = [low[0], low[1], low[2], low[3], number[0], number[1], number[2], number[3]];
        self.instructions.push(u64::from_ne_bytes(bytes));
    }

    pub(super) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    pub(super) fn here(&mut self, label: Label) {
        self.labels[label.0] = Some(self.instructions.len());
    }

    pub(super) fn set(&mut self, to: Register, number: i32) {
        self.put(0xb7, to, 0, 0, number);
    }

    pub(super) fn copy(&mut self, to: Register, from: Register) {
        self.put(0xbf, to, from, 0, 0);
    }

    pub(super) fn add(&mut self, to: Register, number: i32) {
        self.put(0x07, to, 0, 0, number);
    }

    pub(super) fn and(&mut self, to: Register, number: i32) {
        self.put(0x57, to, 0, 0, number);
    }

    /// Makes host byte order of 16 bits in network byte order.
    pub(super) fn be16_to_host(&mut self, to: Register) {
        self.put(0xdc, to, 0, 0, 16);
    }

    pub(super) fn load(&mut self, size: Size, to: Register, from: Register, offset: i16) {
        self.put(0x61 | size as u8, to, from, offset, 0);
    }

    pub(super) fn store(&mut self, size: Size, to: Register, offset: i16, from: Register) {
        self.put(0x63 | size as u8, to, from, offset, 0);
    }

    /// Adds a register to the eight bytes at `to`, also if other CPUs do (`BPF_ATOMIC`).
    pub(super) fn add_there(&mut self, to: Register, from: Register) {
        self.put(0xdb, to, from, 0, 0);
    }

    pub(super) fn store_number(&mut self, size: Size, to: Register, offset: i16, number: i32) {
        self.put(0x62 | size as u8, to, 0, offset, number);
    }

    /// The address of a map, by its descriptor; takes two instructions.
    pub(super) fn map(&mut self, to: Register, descriptor: i32) {
        const PSEUDO_MAP_FD: u8 = 1;
        self.put(0x18, to, PSEUDO_MAP_FD, 0, descriptor);
        self.put(0, 0, 0, 0, 0);
    }

    pub(super) fn call(&mut self, function: i32) {
        self.put(0x85, 0, 0, 0, function);
    }

    pub(super) fn exit(&mut self) {
        self.put(0x95, 0, 0, 0, 0);
    }

    pub(super) fn jump(&mut self, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.put(0x05, 0, 0, 0, 0);
    }

    pub(super) fn jump_if_equal(&mut self, register: Register, number: i32, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.put(0x15, register, 0, 0, number);
    }

    pub(super) fn jump_unless_equal(&mut self, register: Register, number: i32, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.put(0x55, register, 0, 0, number);
    }

    pub(super) fn jump_if_above(&mut self, one: Register, other: Register, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.put(0x2d, one, other, 0, 0);
    }

    pub(super) fn finish(mut self) -> Vec<Instruction> {
        for (at, label) in self.jumps {
            let to = self.labels[label.0].expect("every label stands somewhere");
            let offset = i16::try_from(to as i64 - at as i64 - 1).expect("a short program");
            self.instructions[at] |= u64::from(offset.cast_unsigned()) << 16;
        }
        self.instructions
    }
}
