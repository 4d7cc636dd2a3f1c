// Package redisstore is a [store.Store] in Redis, single or Cluster, over the caller's go-redis client.
//
// The laws are those of package store. What they need here:
//
//  1. Every Apply is one command, EVALSHA, and so all or nothing at one moment. It is never sent a second time by
//     itself, whatever MaxRetries the client has: an answer that does not arrive is an error ("may have happened"), and
//     a use is not spent again. Get is one command for one aggregate.
//
//  2. What was acknowledged is kept as well as Redis keeps it: see below.
//
//  3. What was acknowledged is seen by every node: reads go to masters. Open refuses clients that ask replicas.
//
// Promises and settings. Counted uses, codes redeemed once, revocations, one grant per cause and the ledger (P2, P3, P5, P8)
// hold as far as what was acknowledged is kept; where it is not, a use may be had again, a revocation be forgotten.
//
//	appendonly yes, appendfsync always    kept through a crash of Redis and of its machine
//	appendonly yes, appendfsync everysec  a crash of the machine loses up to two seconds; one of Redis alone nothing,
//	                                      unless the disk was so slow that Redis put off writing
//	aof-load-truncated no                 required for all or nothing, else see below; Open warns
//	snapshots only (save)                 a crash loses all since the last snapshot; Open warns
//	nothing on disk                       a restart forgets everything; Open warns
//	maxmemory-policy noeviction           required, else records vanish; Open warns. (volatile-* will do: no key expires
//	                                      by itself.) At maxmemory an Apply that writes is an error and writes nothing.
//
// A Redis that is killed while it writes to its append-only file leaves the beginning of an Apply there. With
// aof-load-truncated yes, the default, it starts all the same, and in the versions that we know (7.0.15; Valkey says the
// same of its own) it cuts off only the last command: when it is started once more, that beginning is carried out with
// what came after it. With no, it does not start: mend the file as it says, with redis-check-aof --fix, which takes away
// all of the beginning, and none of what was acknowledged.
//
// Fail-over (Sentinel, Cluster) may lose acknowledged writes under each of these settings: a replica follows later, and the
// one that takes over may lack the last of them; a master that is cut off goes on accepting writes that will be dropped, for
// cluster-node-timeout. min-replicas-to-write 1 with min-replicas-max-lag 1 bounds that to two or three seconds: Redis
// counts in whole ones, and looks once in each. WAIT is not sent: it tells how many replicas have a write, but a write that
// it was not satisfied with has happened all the same, and a replica without it may still be elected. Where no fail-over may
// give back a use, take a store that commits by majority.
//
// In a cluster, the slots of a master that is away and has no replica answer nothing until it is back with what it has on
// disk; after cluster-node-timeout all of the cluster says CLUSTERDOWN, unless cluster-require-full-coverage is no. While a
// slot moves to another master, Redis says TRYAGAIN to whatever writes there: nothing was written. Neither lets anything
// through that it should not, and both end with their cause.
//
// Limits: times from year 1 to 9999, to the microsecond. Sorted sets hold doubles, so outside of 1684 to 2255 the
// order of a Claim and the border of a Purge are good to 32 µs; Spend, and what a Claim may take, are exact always.
// Versions are exact to 2⁵³. The server must be 6.2 or later, or one that speaks like it (Valkey); every script
// declares all its keys. An Owner alone is looked for among all records of the kind in many round trips.
//
// Format: the aggregate's hash picks one of 256 hash tags, {00} to {ff}, and with it the slot. All keys of an
// aggregate are in one slot, and 256 tags spread over a cluster; a master more than that would stay idle. Under each
// tag:
//
//	behest:{3f}:r:token:a1.t7   a record: 82 digits (see record.go), owner, app, data
//	behest:{3f}:i:token         its ID, sorted by bytes
//	behest:{3f}:a:token         app and ID, sorted by bytes
//	behest:{3f}:d:token         ID by Due
//	behest:{3f}:e:token         app, Due and ID, sorted by bytes
//	behest:{3f}:x:token         ID by NotAfter
//
// An Apply that puts what is due (a delivery, not a use) also publishes its App on the channel behest:due, within the
// same command, for [Store.Listen]. It is a channel of the whole cluster. Where there are ACLs, grant &behest:due; who
// may not publish writes all the same, and nobody is told.
//
// Use:
//
//	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:6379", ContextTimeoutEnabled: true})
//	defer client.Close()
//	s, err := redisstore.Open(ctx, client, redisstore.Options{Logger: slog.Default()})
//	if err != nil {
//		return err
//	}
//	out, err := s.Apply(ctx, now, []store.Op{store.Spend("token", "a1.t7", 1, nil)})
package redisstore
