//! A batch from a device that several ports or far ends share: each run of frames of one network from one of them goes through
//! the stages as a burst of that one.
//!
//! What the guard and the bridge know of senders thus holds for them too, and frames come in runs.

use crate::bridge::{self, Questions};
use crate::stage::Scope;
use crate::tables::Tables;
use crate::uplink::Arrival;
use crate::{pass, pass_again};
use switch::batch::Batch;
use switch::ids::{NetworkIndex, PortIndex};
use switch::worker::{Context, Egress};

/// Frames of one network from one sender, on their way through the stages.
struct Run<'a> {
    scope: Scope<'a>,
    network: NetworkIndex,
    questions: Questions,
    packets: usize,
    bytes: usize,
}

impl Run<'_> {
    fn end(self, device: PortIndex, batch: &mut Batch<'_>, egress: &mut Egress<'_>) {
        // What the device's own port received is counted already.
        if self.scope.ingress != device {
            egress.received(self.scope.ingress, self.packets, self.bytes);
        }
        bridge::answer(&self.scope, batch, &self.questions, egress);
    }
}

/// Takes a batch of `device` through everything; `receive` opens one frame of it and says whose it is.
#[inline(always)]
pub(crate) fn run(
    tables: &Tables,
    context: &Context<'_>,
    device: PortIndex,
    batch: &mut Batch<'_>,
    egress: &mut Egress<'_>,
    receive: impl Fn(&mut Batch<'_>, usize) -> Arrival,
) {
    let mut run: Option<Run<'_>> = None;
    for index in 0..batch.len() {
        match receive(batch, index) {
            Arrival::From(port, network) => {
                if let Some(ended) = run.take_if(|run| run.scope.ingress != port || run.network != network) {
                    ended.end(device, batch, egress);
                }
                let run = run.get_or_insert_with(|| Run {
                    scope: Scope::of_far_end(tables, context, port, network),
                    network,
                    questions: Questions::none(),
                    packets: 0,
                    bytes: 0,
                });
                run.packets += 1;
                run.bytes += batch.packets()[index].len();
                batch.packets_mut()[index].ingress = port;
                let passed = match pass(&run.scope, &mut batch.packets_mut()[index]) {
                    Ok(notes) => Ok(notes),
                    Err(_) => pass_again(&run.scope, batch, index),
                };
                match passed {
                    Ok(notes) => run.questions.ask_late(batch, index, &notes),
                    Err(reason) => egress.drop_ingress(port, reason),
                }
            }
            Arrival::Answered => egress.forward(index, batch.packets()[index].len(), device),
            Arrival::Taken => egress.consume(),
            Arrival::Refused(reason) => egress.drop_ingress(device, reason),
        }
    }
    if let Some(run) = run {
        run.end(device, batch, egress);
    }
}
