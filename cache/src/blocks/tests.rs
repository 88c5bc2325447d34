//! The tiers on real directories.
