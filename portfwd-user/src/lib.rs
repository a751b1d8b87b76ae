//! The loader of portfwd.
