//! Where a session has it written down where its rings stand: in the frontend's inflight area, if it gave one, or in our own
//! file, which only packed rings need ([`crate::inflight`]).

use super::setup::Setup;
use super::{RINGS, Session, SessionError};
use crate::inflight::{RecordError, Resumed, region_len};
use crate::memory::Area;
use crate::message::InflightInfo;
use crate::net::F_RING_PACKED;
use crate::ring::{KeepError, Kept, Layout, QUEUE_SIZE_MAX};
use crate::state_file::{StateFile, name_of};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Bytes of the longest inflight area that a frontend may give: of as many rings as there can be, all of the largest size.
const INFLIGHT_BYTES_MAX: u64 = (RINGS * region_len(true, QUEUE_SIZE_MAX)) as u64;
const _: () = assert!(region_len(false, QUEUE_SIZE_MAX) <= region_len(true, QUEUE_SIZE_MAX));

impl Session {
    /// Has it written down where a ring stands, and finds out where it stood when a switch before us died; answers where
    /// it goes on.
    pub(super) fn keep<L: Layout>(&self, index: usize, ring: &mut L) -> Result<u32, SessionError> {
        let setup = &self.rings[index];
        let size = setup.size as u16;
        let is_asked = !setup.is_base_ours;
        let failed = |error| match error {
            KeepError::Record(source) => SessionError::Record { index, source },
            KeepError::Ring(source) => SessionError::Ring { index, source },
        };
        if let Some((area, info)) = &self.inflight {
            if index >= usize::from(info.ring_count) || size != info.ring_size {
                return Err(SessionError::Record { index, source: RecordError::TooShort });
            }
            let kept = Kept { area: area.clone(), start: index * L::record_len(size), is_asked };
            let (resumed, base) = ring.keep(kept, setup.base).map_err(failed)?;
            self.tell_of(index, resumed);
            return Ok(base);
        }
        // A split ring says itself where it stands.
        let Some(file) = L::IS_PACKED.then(|| self.state_file()).flatten() else { return Ok(setup.base) };
        let name = self.name_of(setup);
        let mut kept = file.kept(index, name);
        kept.is_asked &= is_asked;
        file.forget(index);
        let (area, start) = (kept.area.clone(), kept.start);
        let (resumed, base) = match ring.keep(kept, setup.base) {
            // Our own file says what we never write; it begins anew.
            Err(KeepError::Record(_)) => ring.keep(Kept { area, start, is_asked: false }, setup.base),
            kept => kept,
        }
        .map_err(failed)?;
        self.tell_of(index, resumed);
        if !file.is_dead() {
            file.call(index, name);
        }
        Ok(base)
    }

    /// What tells a ring from any other: where in which memory file it lies, its size, and where the frontend said it begins.
    fn name_of(&self, setup: &Setup) -> u64 {
        let (Some(memory), Some(addresses)) = (&self.memory, &setup.addresses) else { return 1 };
        let parts = [addresses.descriptors, addresses.available, addresses.used];
        let mut words = vec![u64::from(setup.size), u64::from(setup.told_base)];
        words.extend(parts.into_iter().filter_map(|part| memory.whereabouts(part)).flatten());
        name_of(&words)
    }

    /// Our own file, opened when it is first needed.
    fn state_file(&self) -> Option<&StateFile> {
        let open = || {
            let path = self.state_path.as_ref()?;
            StateFile::open(path)
                .inspect_err(|error| {
                    if self.is_told {
                        tracing::warn!(path = %path.display(), %error, "nobody will know where packed rings stand if we die");
                    }
                })
                .ok()
        };
        self.state_file.get_or_init(open).as_ref()
    }

    /// What is written down in our own file of a ring means nothing any more.
    pub(super) fn forget(&self, index: usize) {
        if let Some(Some(file)) = self.state_file.get() {
            file.forget(index);
        }
    }

    pub(super) fn forget_all(&self) {
        (0..RINGS).for_each(|index| self.forget(index));
    }

    /// A new inflight area for the rings of the layout that was agreed on.
    pub(super) fn make_inflight(&mut self, wish: InflightInfo) -> Result<InflightInfo, SessionError> {
        let InflightInfo { ring_count, ring_size, .. } = wish;
        let refused = SessionError::NoInflight { ring_count, ring_size };
        if usize::from(ring_count) > RINGS || ring_count == 0 || !(1..=QUEUE_SIZE_MAX).contains(&ring_size) {
            return Err(refused);
        }
        let ring_len = region_len(self.features & F_RING_PACKED != 0, ring_size) as u64;
        let size = u64::from(ring_count) * ring_len;
        let Ok((file, _area)) = Area::create(size) else { return Err(refused) };
        self.inflight_file = Some(file);
        Ok(InflightInfo { size, file_offset: 0, ring_count, ring_size })
    }

    /// Takes an inflight area that the frontend keeps, in place of the one before.
    pub(super) fn take_inflight(&mut self, info: InflightInfo, file: &OwnedFd) -> Result<(), SessionError> {
        if info.size > INFLIGHT_BYTES_MAX {
            return Err(SessionError::InflightTooLong { given: info.size });
        }
        let area = Area::map(file, info.file_offset, info.size)?;
        self.stop();
        self.inflight = Some((Arc::new(area), info));
        Ok(())
    }

    /// Says in the log, once a session, how a ring went on that a switch before us had.
    fn tell_of(&self, ring: usize, resumed: Resumed) {
        let told = self.told_rings.get();
        if !resumed.is_recorded || !self.is_told || told & 1 << ring != 0 {
            return;
        }
        self.told_rings.set(told | 1 << ring);
        let Resumed { position, given_back, .. } = resumed;
        tracing::info!(ring, position, given_back, "a ring goes on where it is written down that it stands");
    }
}
