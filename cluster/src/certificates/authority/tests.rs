//! Rotation through years of virtual time, as callers with old bundles see it.

use proptest::prelude::*;

use super::*;

const START: u64 = 1_800_000_000;

fn plan(authority: u64, certificate: u64, settle: u64) -> Plan {
    Plan {
        names: vec!["warpdrive.system.svc".to_owned(), "127.0.0.1".to_owned()],
        authority: Duration::from_secs(authority),
        certificate: Duration::from_secs(certificate),
        settle: Duration::from_secs(settle),
    }
}

/// What the keeper does with the bundle: an authority is settled when it has been in it for `settle`.
#[derive(Default)]
struct Clock {
    newest: String,
    since: u64,
}

impl Clock {
    fn settled(&mut self, kept: &Kept, now: u64, plan: &Plan) -> bool {
        let newest = kept.newest().unwrap_or_default();
        if newest != self.newest {
            (self.newest, self.since) = (newest.to_owned(), now);
        }
        now >= self.since + plan.settle.as_secs()
    }
}

#[test]
fn an_empty_secret_becomes_one_authority_and_one_certificate_that_it_vouches_for() {
    let plan = plan(900, 300, 10);
    let mut kept = Kept::default();
    assert!(kept.advance(START, &plan, false).unwrap());
    assert_eq!(kept.authorities.len(), 1);
    assert!(kept.is_accepted(START, &plan.names));
    assert!(!kept.is_accepted(START, &["other.system.svc".to_owned()]));
    let pair = kept.pair().unwrap();
    assert_eq!((pair.not_before, pair.not_after), (START - SKEW_SECONDS, START + 300));
    let read = Kept::from_data(&kept.to_data()).unwrap();
    assert_eq!(read, kept);
    assert!(!kept.advance(START + 1, &plan, false).unwrap(), "nothing is due");
    assert!(!format!("{kept:?}").contains("PRIVATE"), "keys are not shown");
}

#[test]
fn a_caller_an_hour_behind_accepts_a_new_certificate() {
    let plan = plan(9000, 3000, 10);
    let mut kept = Kept::default();
    kept.advance(START, &plan, false).unwrap();
    assert!(kept.is_accepted(START - SKEW_SECONDS, &plan.names));
}

#[test]
fn a_new_name_makes_a_new_certificate_of_the_same_authority() {
    let mut plan = plan(900, 300, 10);
    let mut kept = Kept::default();
    kept.advance(START, &plan, false).unwrap();
    let bundle = kept.bundle();
    plan.names.push("renamed.system.svc".to_owned());
    assert!(kept.advance(START + 1, &plan, true).unwrap());
    assert_eq!(kept.bundle(), bundle);
    assert!(kept.is_accepted(START + 1, &plan.names));
}

#[test]
fn somebody_elses_certificate_is_left_alone() {
    let mut data = BTreeMap::new();
    data.insert(CERTIFICATE_KEY.to_owned(), ByteString(b"-----BEGIN".to_vec()));
    let error = Kept::from_data(&data).unwrap_err();
    assert!(error.contains("--tls-cert"), "{error}");
    data.insert(CERTIFICATE_KEY.to_owned(), ByteString(Vec::new()));
    assert_eq!(Kept::from_data(&data).unwrap(), Kept::default());
}

#[test]
fn what_is_damaged_is_made_anew() {
    let plan = plan(900, 300, 10);
    let mut whole = Kept::default();
    whole.advance(START, &plan, false).unwrap();
    for key in [AUTHORITY_KEY, CERTIFICATE_KEY, PRIVATE_KEY] {
        for damage in
            [&b""[..], b"{}", b"[1", b"{\"authorities\":[],\"issuer\":\"x\"}", b"\xff\xfe"]
        {
            let mut data = whole.to_data();
            data.insert(key.to_owned(), ByteString(damage.to_vec()));
            let mut kept = Kept::from_data(&data).unwrap();
            assert!(kept.advance(START + 1, &plan, true).unwrap(), "{key}");
            assert!(kept.is_accepted(START + 1, &plan.names), "{key}");
        }
    }
    let mut lost = whole.clone();
    lost.authorities[0].key = Some(PrivatePem("no key".to_owned()));
    lost.advance(START + 250, &plan, true).unwrap();
    assert!(lost.is_accepted(START + 250, &plan.names));
    assert_eq!(lost.bundle().matches("BEGIN").count(), 2, "the old one is still trusted");
}

#[test]
fn after_a_long_sleep_everything_is_new() {
    let plan = plan(900, 300, 10);
    let mut kept = Kept::default();
    kept.advance(START, &plan, false).unwrap();
    let old = kept.bundle();
    let later = START + 100_000;
    assert!(kept.advance(later, &plan, false).unwrap());
    assert!(kept.is_accepted(later, &plan.names));
    assert!(!kept.bundle().contains(&old));
}

#[test]
fn what_a_clock_that_was_ahead_made_is_not_kept() {
    let plan = plan(900_000, 300_000, 10);
    let mut kept = Kept::default();
    // Within the hour that "not before" is put back nobody notices.
    kept.advance(START + SKEW_SECONDS, &plan, false).unwrap();
    assert!(!kept.advance(START, &plan, false).unwrap());
    let mut kept = Kept::default();
    kept.advance(START + 3 * SKEW_SECONDS, &plan, false).unwrap();
    let ahead = kept.bundle();
    assert!(!kept.is_accepted(START, &plan.names));
    assert!(kept.advance(START, &plan, false).unwrap());
    assert!(!kept.bundle().contains(&ahead));
    assert!(kept.is_accepted(START, &plan.names));
}

#[test]
fn a_successor_does_not_issue_in_the_round_that_makes_it() {
    let plan = plan(900, 300, 10);
    let mut kept = Kept::default();
    kept.advance(START, &plan, false).unwrap();
    // Authority and certificate are due at the same moment, and the old authority is trusted everywhere.
    let old = kept.bundle();
    assert!(kept.advance(START + 600, &plan, true).unwrap());
    assert_eq!(kept.authorities.len(), 2);
    assert!(accepts(&old, &kept.pair().unwrap(), START + 600, &plan.names));
}

#[test]
fn an_authority_that_is_done_keeps_no_key_and_leaves() {
    let plan = plan(900, 300, 10);
    let (mut kept, mut clock) = (Kept::default(), Clock::default());
    let mut most = 0;
    for now in (START..START + 10_000).step_by(5) {
        let settled = clock.settled(&kept, now, &plan);
        kept.advance(now, &plan, settled).unwrap();
        most = most.max(kept.authorities.len());
        for old in &kept.authorities[..kept.authorities.len() - 1] {
            assert!(old.key.is_none() || kept.authorities.last().unwrap().name != kept.issuer);
        }
    }
    assert_eq!(most, 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// A server that is behind by up to a third of a certificate's life (more, and it shows one that has
    /// expired), called by somebody whose bundle is up to `settle` old: accepted, at every moment, through
    /// several authorities.
    #[test]
    fn no_caller_ever_fails(
        certificate in 30_u64..100,
        extra in 0_u64..200,
        settle in 1_u64..20,
        step in 1_u64..7,
        bundle_lag in 0_usize..20,
        server_lag in 0_u64..100,
    ) {
        let plan = plan(3 * (certificate + settle + step) + extra, certificate, settle);
        let (mut kept, mut clock) = (Kept::default(), Clock::default());
        let (mut bundles, mut pairs) = (Vec::new(), Vec::new());
        let mut issuers = std::collections::BTreeSet::new();
        let server_lag = (certificate / 3).saturating_sub(step) * server_lag / 100;
        for now in (START..START + 4 * plan.authority.as_secs()).step_by(step as usize) {
            let settled = clock.settled(&kept, now, &plan);
            kept.advance(now, &plan, settled).unwrap();
            bundles.push(kept.bundle());
            pairs.push(kept.pair().unwrap());
            issuers.insert(kept.issuer.clone());
            // Lags in seconds, as whole steps; a bundle is at most `settle` old.
            let lag = (bundle_lag as u64).min(settle) / step;
            let bundle = &bundles[bundles.len().saturating_sub(1 + lag as usize)];
            let pair = &pairs[pairs.len().saturating_sub(1 + (server_lag / step) as usize)];
            prop_assert!(accepts(bundle, pair, now, &plan.names), "at {}", now - START);
            prop_assert!(accepts(&bundles[bundles.len() - 1], &pairs[pairs.len() - 1], now, &plan.names));
        }
        prop_assert!(issuers.len() >= 4, "{}", issuers.len());
    }
}
