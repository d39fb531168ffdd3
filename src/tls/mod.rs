//! Floor 1: who is it: identities, their certificates, and the handshakes that prove them.

pub mod identity;
