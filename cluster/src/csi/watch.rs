//! What the node service looks after between kubelet's calls.
//!
//! Invariant: it takes away only what belongs to pods that kubelet does not have any more, or that
//! have ended; a holder's end is told once, with the pod's
//! name. Each turn ends within seconds.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::holder;
use super::node::{Node, Pod, has_holder};
use super::sweep::Sweeper;

/// How often holders and dead mounts are looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How often what is published is compared with what kubelet has.
const RECONCILE_EVERY: Duration = Duration::from_mins(1);

/// How often a pod gets another holder. One that dies again and again has a reason that starting it
/// does not mend.
const MAX_REVIVALS: u32 = 5;

/// The part that looks, in one thread.
#[derive(Debug)]
pub(super) struct Watch {
    node: Arc<Node>,
    sweeper: Sweeper,
    reconciled: Option<Instant>,
}

impl Watch {
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self { node, sweeper: Sweeper::default(), reconciled: None }
    }

    /// Does what is due.
    pub(super) fn turn(&mut self) {
        self.node.idle(|pod| self.look_at(pod));
        if self.reconciled.is_none_or(|then| then.elapsed() >= RECONCILE_EVERY) {
            self.reconciled = Some(Instant::now());
            self.node.idle(|pod| self.reconcile(pod));
            self.node.remove_strangers();
        }
        // Those of pods on record go when they are unpublished.
        let known =
            self.node.idle(|pod| pod.record.mount.as_ref().map(|mount| mount.target.clone()));
        let pods = self.node.kubelet_dir.join("pods");
        let is_known = |target: &Path| known.iter().flatten().any(|other| other == target);
        let swept = self.sweeper.sweep(&pods, is_known);
        self.node.metrics.swept.inc_by(swept as u64);
        self.node.count_holders();
        self.node.metrics.health.beat();
    }

    /// Tells once that a holder has died, and starts another one while kubelet has the volume.
    fn look_at(&self, pod: &mut Pod) {
        self.node.metrics.health.beat();
        let Some(mount) = &pod.record.mount else { return };
        let log = self.node.log_of(&pod.record.uid);
        if has_holder(mount) {
            holder::trim(&log);
            return;
        }
        let (target, process) = (mount.target.clone(), mount.holder);
        let (name, uid) = (pod.record.pod.clone(), pod.record.uid.clone());
        if !pod.is_told {
            pod.is_told = true;
            if let Some(process) = process {
                holder::reap(process.pid);
            }
            self.node.metrics.holder_deaths.inc();
            tracing::warn!(
                pod = name,
                uid,
                said = holder::last_words(&log),
                "the mount holder of a pod has ended; what reads its mount gets ENOTCONN"
            );
        }
        if pod.revivals >= MAX_REVIVALS || !is_kept(&target) {
            return;
        }
        pod.revivals += 1;
        match self.node.revive(pod) {
            Ok(()) => {
                pod.is_told = false;
                tracing::info!(
                    pod = name,
                    uid,
                    "mounted again for containers that start from now on"
                );
            }
            Err(why) => tracing::warn!(pod = name, uid, why, "mounting again failed"),
        }
    }

    /// Unpublishes what kubelet does not have any more.
    fn reconcile(&self, pod: &mut Pod) {
        self.node.metrics.health.beat();
        let targets: Vec<_> = pod.record.targets().cloned().collect();
        for target in targets {
            // Elsewhere nothing says what kubelet has: the service was told of another directory.
            if is_kept(&target) || !self.node.is_target_of(&target, &pod.record.uid) {
                continue;
            }
            let path = target.display();
            match self.node.take(pod, &target) {
                Ok(()) => tracing::info!(%path, "unpublished what kubelet does not have any more"),
                Err(error) => {
                    tracing::warn!(%path, %error, "a volume of no pod cannot be unpublished");
                }
            }
        }
    }
}

/// Whether kubelet has a volume: it keeps a file beside the target until it was told that the volume
/// is gone, so that nothing has to be asked of the mount.
fn is_kept(target: &Path) -> bool {
    target.parent().is_none_or(|folder| !matches!(folder.try_exists(), Ok(false)))
}
