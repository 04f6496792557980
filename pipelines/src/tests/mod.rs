//! Tests of the pipeline as a whole: through a worker, fake ports and real books.

mod etherparse_oracle;
pub(crate) mod frames;
mod golden_traces;
mod heads;
mod order;
mod pipeline_oracle;
pub(crate) mod rig;
