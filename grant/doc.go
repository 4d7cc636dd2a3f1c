// Package grant decides when an operation of a user gives an app a token, and what that token is good for.
//
// The laws, which its tests hold by these names:
//
//   - P1 Cause. A token exists only because the account named in it did, in that domain, an operation that a
//     [Trigger] predetermined.
//   - P2 Once per cause. One [Event] (operation, ID, account) and one trigger make at most one [Grant], however
//     often the event is emitted, on however many engines; a trigger is what has its ID and its app. The same event
//     ID with other content is an error ([ErrInvalid]). An event is remembered for a week: emit late ones with their
//     time, which may be an hour ago.
//   - P3 Counted. A code is redeemed at most once and a token is spent at most Uses times, under any concurrency.
//     What loses is told so.
//     A use may be spent in the caller's transaction, together with its effect ([Engine.Prepare]), and a call that
//     has a key is spent once, however often it is made ([Delegation.Once]).
//   - P4 Narrow. What a grant allows is what the trigger, the app's registration and the account's own rights
//     ([Config].Permit) have in common. The trigger is fixed at issue; the others are asked again at each use.
//     Beyond a limit is an error, never a clamp; nothing in common is [ErrDenied], on the record.
//     What is derived of a token ([Engine.Derive]) is never more than that: it spends the same uses, and dies with it.
//   - P5 Revocable. One grant, one app here, or all that an account granted end with one write, and with the next
//     use on any engine. [Engine.Change] suspends and removes apps and triggers while engines run, and returns when
//     that holds on every one of them.
//   - P6 Secret. Codes and tokens are in the store only as hashes or sealed, and in no error, log or printed value:
//     see [Secret].
//   - P7 No loops. What is done with a token triggers nothing, unless a trigger chains.
//   - P8 On the record. What is issued, asked, decided, redeemed, derived, used and revoked is in the ledger in the same
//     write, with both names. Refusals follow with [Engine.Flush], counted.
//   - P9 Cheap to refuse. A forged token or code costs no look into the store.
//   - P10 Honest. The holder of a real token learns why it failed ([Reason]); a stranger gets [ErrUnknown].
//
// # Format
//
// A code and a token are a prefix and base64url, without padding and in one spelling only, of
//
//	key ID (4) | nonce (24) | XChaCha20-Poly1305 of the content, with the key ID as associated data | tag (16)
//
//	bhsc_  1 | secret (32) | grant ID, account (each with its length)
//	bhst_  1 | secret (32) | issued, not after (microseconds, 8 each) | two revocation versions, uses (varints) |
//	       aggregate, grant ID, revocation ID, account, domain, actions, trigger, operation, event ID (each with its length);
//	       or 2 | all that | how many may be derived, one of the other (varint) | thumbprint of the key, delegates, what it
//	       is derived from (each with its length): the nearest first, each of token hash, grant ID, revocation ID
//	       (each with its length), revocation version (varint)
//
// Format 2 is for tokens that are bound, derived, or of triggers with Delegates or DeriveDepth. A code has 144 to 569
// characters, by how long the names of the app and the account are, a token 300 and more, at most 7168; some 200 of them
// for each token that it is derived from. The store has SHA-256 of the secret. Nothing of this is for others to read: it
// may change.
//
// A grant's ID is 22 characters of base64url, "-", and the app's ID with "~" for ".": 24 to 87 characters that a URL, a
// webhook-id and the ID of a record all take. So what a revocation writes about the grant needs no look first.
//
// Records (see package store) lie in the aggregate of their account: A is 22 characters of base64url, an HMAC of its
// name, as are the other names below that are no words.
//
//	event       A.e<event>             its fingerprint, SHA-256
//	grant       A.<grant>              JSON; its Version makes Decide and Redeem happen once; Left is 1: there it is
//	token       A.<hash of secret>     Left is the uses left
//	revocation  A.all, A.<app here>, A.<grant>   the Version is what counts; the first two stay for good, and so does
//	            A.signed-in-at.<app>             that of RevokeSignIns
//	consent     A.<app, domain, actions>         JSON: the answer, and the revocation versions under which it holds
//	window      A.<trigger>-<minute>   Left is what PerMinute leaves
//	            A.<grant>-derived      Left is how many more may be derived of what was redeemed
//	once        A.<grant, key>         JSON: a hash of the call that happens once, and its answer in the clear
//	proof       A.<key, ID of proof>   a proof of the key that a token is bound to: taken once
//	ledger      A.<time><random>       JSON, with the account as Owner, the App, and its time as NotAfter
//	push, poll, redirect   A.<grant>   the outbox: the code, sealed; Due is when to deliver it
//	config      config.head, config.c<number>, config.s<number>-<part>   sealed: the changes and their snapshot
//
// # Configuration
//
// Config.Apps and Config.Triggers are where an engine begins; what [Engine.Change] says lies in the store and goes
// before them, by ID. An engine goes by a snapshot in memory that it never changes: a call pays for one comparison.
// A snapshot that was looked at more than 3 s ago is not used: [Engine.Look], called about once a second, sees to it
// that it never is; otherwise the call looks first, once for all that wait. When the store does not answer, all that
// needs to know the configuration fails, with an error that is no [Reason], and works again as soon as it answers.
// So a change holds everywhere after 3 s, which is how long Change waits. With a store that is a store.Watcher (one
// that lives in one process, as store.Memory does) every engine knows at once: it reads no clock, and Change does not
// wait. A call that is under way in Permit or in the store when Change returns may still end as it began.
//
// The head says what there is, so a look that finds nothing new reads one small record. Of the changes, about the last 64
// are kept, and a snapshot of what was before. All of it is sealed with a key from Config.Key that never changes:
// who reads the store learns no secret, and who writes there widens nothing beyond what once was: to put older records
// back, or to remove these, sets the configuration back, be it by a backup or by an enemy.
//
// # Retention
//
// Purge removes records this long after their end, and nothing before:
//
//	token                 its life, from its redemption     1 day: the holder is told "expired" for good, by the seal
//	grant                 its token's or code's end; a      7 days, so that one cause makes one grant (P2) and Grants can
//	                      day while it waits for Decide     show what was
//	event                 an hour (how late it may come)    7 days
//	push, poll, redirect  its code's end; at redemption or  0
//	                      delivery they are gone at once
//	window                its minute, or the token's end    0
//	once                  its token's end                   1 hour: a key of Once, and perhaps the answer to it
//	proof                 when it is too old anyway         1 minute
//	consent               90 days after the answer          0
//	revocation            of one grant: 14 days after it,   7 days: it outlives the grant, whatever that is when it is
//	                      revoking does not look at it      revoked; those of an account and of an app here stay for
//	                                                        good: two small records at most for each account, app and
//	                                                        root domain that ever revoked
//	ledger                when it was written               Config.KeepLedger, 90 days by default, whatever becomes of
//	                                                        the token and the grant it tells of
//
// An issue leaves an event, a grant, a delivery and a ledger entry, its redemption a token and an entry, and each use
// one entry: 10 uses a second are 78 million of them in 90 days.
//
// # Clocks
//
// Times are those of each node's own clock (Config.Now): keep them within a second of each other, as NTP does. Counts,
// revocations and what happens once do not depend on it, nor does how long a Change takes to hold. What does:
//
//   - A code and a token end as much earlier or later as the clock of the node that is asked is wrong.
//   - Adding an app again after its removal ends what was granted before by comparing the time of issue, by the node
//     that issued, with that of the addition, by the node that added. Let pass more between removal and addition than
//     clocks differ, or what a node ahead has granted lives on; what a node behind grants in the moments after the
//     addition is refused as revoked.
//   - A node that is ahead purges as much too soon. By more than a minute it forgets proofs that are still good
//     elsewhere, by an hour keys of Once, by a day tokens, by a week what P2 needs.
//   - An event whose time is more than a minute ahead is refused.
//
// # Keys
//
// Keys are derived by HKDF-SHA-256, one for each purpose: from [Config].Key those that name accounts in the store and
// to apps, and the one that seals the configuration, which never change; from each key of Config.Sealing those that
// seal codes, tokens and the outbox, which rotate. What one key sealed, or for one purpose, no other opens.
//
// # Use
//
//	e, err := grant.NewEngine(grant.Config{Store: store.NewMemory(), Key: key, Permit: mayDo, Apps: apps, Triggers: triggers})
//	grants, err := e.Emit(ctx, grant.Event{ID: "m1", Operation: grant.Mention, Account: "zhang-san", App: "bookbot", Domain: group}) // the server saw it
//	g, token, err := e.Redeem(ctx, "bookbot", grants[0].Code)      // the app, authenticated as a client
//	d, err := e.Use(ctx, token.Reveal(), wanted)                   // an API call: act as d.Account, via d.App, in d.Domain
//	g, child, err := e.Derive(ctx, "bookbot", token, narrower)     // token exchange
//	err = e.RevokeApp(ctx, "zhang-san", "bookbot", group)          // enough
//	_, err = e.Change(ctx, "li-si", func(c *grant.Config) error { c.Apps[0].Suspended = true; return nil }) // on all nodes
//	err = errors.Join(e.Look(ctx), e.Flush(ctx), deliver(e.Claim(ctx, grant.Push, "", nil, 100, time.Minute))) // about once a second
package grant
