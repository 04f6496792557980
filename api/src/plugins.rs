//! The plugins: [`native`] drives this switch, [`fake`] keeps records only.
//!
//! Both keep the same records under the same rules ([`recorded`]) and differ in where a write goes, in what op-status
//! is, and in which fault wins when a plug is refused for two reasons.

pub mod fake;
pub mod native;
pub mod recorded;

pub use fake::FakePlugin;
pub use native::NativePlugin;
