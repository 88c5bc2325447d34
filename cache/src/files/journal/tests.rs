//! The journal at every byte that it can end at.
