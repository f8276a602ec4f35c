//! A name's addresses, within a time and on few threads.
//!
//! `getaddrinfo` cannot be stopped: with a DNS server that is dead it holds its thread for many seconds, also after everybody has
//! ceased to wait. So a backend has only so many lookups at once; the next ones wait for a place as long as they may, and fail.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::Arc,
};

use tokio::sync::Semaphore;

use crate::limits;

/// A backend's lookups.
#[derive(Clone)]
pub(super) struct Resolver {
    places: Arc<Semaphore>,
}

impl Resolver {
    pub(super) fn new() -> Self {
        Self {
            places: Arc::new(Semaphore::new(limits::BACKEND_RESOLVERS)),
        }
    }

    /// All addresses of `host`; at once where it is one. May be dropped while it waits: its thread goes on, and keeps its place.
    pub(super) async fn find(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let places = self.places.clone();
        let place = places.acquire_owned().await.map_err(io::Error::other)?;
        let name = (host.to_owned(), port);
        let lookup = tokio::task::spawn_blocking(move || {
            let _place = place;
            name.to_socket_addrs().map(Iterator::collect)
        });
        lookup.await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_needs_no_lookup_and_a_lookup_needs_a_place() {
        let resolver = Resolver::new();
        let all = limits::BACKEND_RESOLVERS as u32;
        let taken = resolver.places.clone().acquire_many_owned(all).await;
        assert_eq!(resolver.find("::1", 7).await.unwrap().len(), 1);
        tokio::select! {
            biased;
            _ = resolver.find("localhost", 7) => panic!("there was no place"),
            () = tokio::task::yield_now() => {}
        }
        drop(taken);
        assert!(!resolver.find("localhost", 7).await.unwrap().is_empty());
    }
}
