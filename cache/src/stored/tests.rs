//! The cached store against its model.
