//! Retries, resumed bodies and the breaker over a store that fails on demand, on a paused clock.
