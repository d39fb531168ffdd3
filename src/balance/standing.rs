//! Floor 4: what a balancer tells those who choose among several: whether it could take a request, and whose session it
//! holds.

use crate::balance::future::Pick;
use crate::balance::layer::{Balance, Snapshot};
use crate::balance::rules::Breaker;
use crate::balance::set::Slot;
use crate::balance::ticket::{Due, Ticket};
use crate::balance::update::Item;
use crate::policy::call::MeshRequest;
use crate::policy::route::Standing;
use crate::stdx::moment::Moment;

impl<S> Standing for Balance<S> {
    /// Not while discovery is silent, and not with all endpoints shut, unless one may be tried out again.
    fn is_usable(&self) -> bool {
        let snapshot = self.core.now.load();
        let open = match &snapshot.rules.breaker {
            Breaker::Whole(ward) => {
                let shut = ward.shut();
                shut < snapshot.usable
                    || snapshot.rules.panics(snapshot.usable, shut)
                    || ward.is_awake(snapshot.rules.now())
            }
            Breaker::None | Breaker::Routes(_) => true,
        };
        snapshot.known && snapshot.usable > 0 && open
    }

    fn has_session(&self, session: u64) -> bool {
        self.core.now.load().of_session(session).is_some()
    }
}

impl<S> Snapshot<S> {
    /// The endpoint of a session, unless it gets nothing new or is shut. Walks over all endpoints: only requests that bring
    /// a session come here.
    fn of_session(&self, session: u64) -> Option<&Slot<Item<S>>> {
        let is_it = |slot: &&Slot<Item<S>>| slot.cell.key() == session;
        let slot = self.set.iter().map(|(_, slot)| slot).find(is_it).filter(|slot| slot.weight > 0)?;
        let shut = match &self.rules.breaker {
            Breaker::Whole(ward) => ward.shut() > 0 && ward.state(slot.cell.id()).is_some(),
            Breaker::None | Breaker::Routes(_) => false,
        };
        (!shut).then_some(slot)
    }
}

impl<S: Clone> Snapshot<S> {
    /// The endpoint of the session that a request belongs to, if its route keeps sessions. Another attempt goes elsewhere.
    #[inline]
    pub(crate) fn pinned<R: MeshRequest>(&self, request: &R, now: Moment) -> Option<Pick<S>> {
        request.route()?.session()?;
        let state = request.state().filter(|state| state.attempt == 0)?;
        let slot = self.of_session(state.hash?)?;
        Some(Pick::Sent(slot.item.service.clone(), Ticket::take(&slot.item.member, now, Due::of(state))))
    }
}
