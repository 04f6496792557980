//! The plugins: [`native`] drives this switch, [`fake`] keeps records only, [`remote`] drives a device elsewhere.
//!
//! All keep the same records under the same rules ([`recorded`]) and differ in where a write goes, in what op-status
//! is, and in which fault wins when a plug is refused for two reasons.

pub mod fake;
pub mod native;
pub mod recorded;
pub mod remote;

pub use fake::FakePlugin;
pub use native::NativePlugin;
pub use remote::RemotePlugin;
