//! The reference store passes the whole contract, and the contract tells a broken store.

use std::sync::Arc;

use store::testing::contract::{Differences, run};
use store::testing::{Fault, FaultyStore, MemoryStore, Operation};
use store::{ETag, ErrorKind};

#[tokio::test]
async fn the_reference_store_passes_without_differences() {
    run(Arc::new(MemoryStore::new()), Differences::default()).await.assert();
}

#[tokio::test]
async fn a_store_with_one_fault_is_told() {
    let faults = [
        (Operation::Get, Fault::EndAfter(3)),
        (Operation::Get, Fault::CutAfter(3)),
        (Operation::Head, Fault::WrongETag(ETag::parse("x"))),
        (Operation::List, Fault::Fail(ErrorKind::Unavailable)),
        (Operation::CompleteUpload, Fault::Fail(ErrorKind::Internal)),
    ];
    for (operation, fault) in faults {
        let store = FaultyStore::new(Arc::new(MemoryStore::new()));
        for _ in 0..40 {
            store.inject(operation, fault.clone());
        }
        let report = run(Arc::new(store), Differences::default()).await;
        assert!(!report.failed.is_empty(), "{operation:?} with {fault:?} went unseen");
    }
}
