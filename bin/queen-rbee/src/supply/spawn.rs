//! What operators ask for and leave to the queen where: a worker, or a model's file.

use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::ApiError;
use jobs::Failure;
use router::Router;
use scheduler::decide;
use serde_json::Value;
use shared_contract::{ErrorKind, HiveId, ModelId};

use super::errand::Errand;
use super::hive::HiveApi;
use super::load::{Unmet, refusal};
use super::present::PlainWish;
use super::{BY_HIVE, Service};
use crate::jobs::Job;

/// A hive that is to fetch a model's file.
pub(crate) struct Fetcher {
    pub(crate) hive: HiveId,
    pub(crate) api: HiveApi,
    /// What it is asked for.
    pub(crate) reference: String,
}

impl Service {
    /// Brings up a worker for an operator's job; answers with what its hive says of it.
    pub(crate) async fn spawn(
        &self,
        model: &ModelId,
        errand: Errand,
        router: Router,
        job: &Arc<Job>,
    ) -> Result<Value, Failure> {
        job.step("place");
        let id = self.books().begin_errand(model, errand, Instant::now());
        let brought = self.clone().bring_up(id, router, Some(Arc::clone(job))).await;
        brought.map_err(|unmet| match unmet {
            Unmet::Cancelled => Failure::Cancelled,
            Unmet::Nowhere(why) => ApiError::new(ErrorKind::NoCapacity, why).into(),
            Unmet::Unwanted => ApiError::internal("an operator's worker was not wanted any more").into(),
        })
    }

    /// The hive on which a worker of the model would be started, if all that work now were idle: there its file is of most use.
    pub(crate) fn fetcher(&self, model: &ModelId, errand: &Errand, now: Instant) -> Result<Fetcher, ApiError> {
        let hosts = self.hosts(now);
        let fail = |why: String| {
            let message = format!("{why}; name the hive that is to fetch it anyway by {BY_HIVE}");
            ApiError::new(ErrorKind::NoCapacity, message)
        };
        let known = self
            .known_for(model, Some(errand), &hosts)
            .ok_or_else(|| fail("no hive has it, and no catalogue says where it comes from".to_owned()))?;
        let wish = PlainWish {
            model: &known,
            may_evict: true,
            waited: Duration::ZERO,
            in_time: true,
            errand: Some(errand),
        };
        let decision = decide(&self.problem(&hosts, &self.books(), None, &wish, now));
        let choice = decision.choice.as_ref();
        let place = choice.and_then(|choice| hosts.iter().find(|host| host.id.as_str() == choice.host));
        let host = place.ok_or_else(|| fail(refusal(&decision)))?;
        Ok(Fetcher {
            hive: host.id.clone(),
            api: self.api(host),
            reference: known.reference_on(&host.id).unwrap_or(known.reference()).to_owned(),
        })
    }
}
