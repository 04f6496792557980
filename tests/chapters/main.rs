//! The one integration binary. A chapter is a module; `cargo xtask test CHAPTER` runs one alone.

mod vm;
