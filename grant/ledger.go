package grant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/behest-go/behest/store"
)

// An Entry of the ledger says what happened, with both names: on whose behalf, and by which app (P8).
type Entry struct {
	ID      string    // orders the entries of one account by time
	At      time.Time // to the microsecond
	What    string    // "pending", "issued", "denied", "redeemed", "derived", "used", "refused" or "revoked"
	Account string
	App     string // empty for the revocation of all that the account granted
	Grant   string // empty where no single grant is concerned
	// Scope is what was granted; for a use, what was done; for the revocation of an app, where. It is empty for that of
	// a single grant, whose first entry has it, and for refusals of too many different ones.
	Scope  string
	Reason string // of a refusal: a word of [Reason]; "denied" or "limited" at issue; "widen" or "limited" of what was to be derived; "unknown" for a code, or a token that is bound to a key, in the wrong hands
	Count  int    // of refusals that were the same; else 1
	// By and Parent are, of what was derived, the app whose token it was derived from, and that one's grant.
	By, Parent string
	// Left is the uses left after a use, or Unlimited. Only Observe sees it: the entry itself is part of the same write.
	Left int
}

// entryData is what of an entry has no column of its own: its time is NotAfter.
type entryData struct {
	What   string `json:"what"`
	Grant  string `json:"grant,omitempty"`
	Scope  string `json:"scope,omitempty"`
	Reason string `json:"reason,omitempty"`
	Count  int    `json:"count,omitempty"`
	By     string `json:"by,omitempty"`
	Parent string `json:"parent,omitempty"`
}

// ledgerOp writes the entry.
func (e *engine) ledgerOp(aggregate string, entry *Entry) store.Op {
	entry.ID = e.entryID(entry.At)
	return entry.put(aggregate+"."+entry.ID, appendEntry(nil, entry))
}

func (entry *Entry) put(id string, data []byte) store.Op {
	return store.Put(store.Record{Kind: kindLedger, ID: id, Owner: entry.Account, App: entry.App, NotAfter: entry.At, Data: data})
}

// appendEntryID orders the entries of one account by time, then by what came first on this node, and tells apart
// those of other nodes. With the aggregate it is 48 bytes, a size that memory comes in. The time needs no more than 12 digits.
func (e *engine) appendEntryID(b []byte, at time.Time) []byte {
	b = appendBase32(b, uint64(at.UnixMicro()), 12)
	return appendBase32(b, e.entries.Add(1)<<40|rand.Uint64()>>24, 13)
}

func (e *engine) entryID(at time.Time) string { return string(e.appendEntryID(nil, at)) }

// appendEntry is on the way of every use, so the JSON is made by hand. No value needs an escape: all are words of ours,
// IDs of apps and grants, and scopes, which are printable ASCII with neither quotes nor backslashes.
func appendEntry(b []byte, entry *Entry) []byte {
	b = append(append(b, `{"what":"`...), entry.What...)
	if entry.Grant != "" {
		b = append(append(b, `","grant":"`...), entry.Grant...)
	}
	if entry.Scope != "" {
		b = append(append(b, `","scope":"`...), entry.Scope...)
	}
	if entry.Reason != "" {
		b = append(append(b, `","reason":"`...), entry.Reason...)
	}
	if entry.Parent != "" {
		b = append(append(b, `","by":"`...), entry.By...)
		b = append(append(b, `","parent":"`...), entry.Parent...)
	}
	b = append(b, '"')
	if entry.Count > 1 {
		b = strconv.AppendInt(append(b, `,"count":`...), int64(entry.Count), 10)
	}
	return append(b, '}')
}

const base32hex = "0123456789abcdefghijklmnopqrstuv"

// appendBase32 writes digits, each of 5 bits, that sort as the number does. 13 are enough for any.
func appendBase32(b []byte, v uint64, digits int) []byte {
	for shift := 5 * (digits - 1); shift >= 0; shift -= 5 {
		b = append(b, base32hex[v>>shift&31])
	}
	return b
}

// Ledger returns entries of an account, newest first, at most limit (1 to 1000; 0 means 100). Pass the ID of the last
// entry as before to read on; empty: from the newest.
func (e *Engine) Ledger(ctx context.Context, account, before string, limit int) ([]Entry, error) {
	if account == "" || limit < 0 || limit > store.MaxPage || len(before) > maxID {
		return nil, invalid("ledger of %.80q, limit %d", account, limit)
	}
	prefix := e.aggregate(account) + "."
	q := store.Query{Kind: kindLedger, Prefix: prefix, Reverse: true, Limit: limit}
	if before != "" {
		q.After = prefix + before
	}
	found, err := e.store.List(ctx, q)
	if err != nil {
		return nil, err
	}
	out := make([]Entry, len(found))
	for i, r := range found {
		var d entryData
		if err := json.Unmarshal(r.Data, &d); err != nil {
			return nil, fmt.Errorf("grant: record %s %s: %w", r.Kind, r.ID, err)
		}
		out[i] = Entry{ID: strings.TrimPrefix(r.ID, prefix), At: r.NotAfter, What: d.What, Account: r.Owner, App: r.App,
			Grant: d.Grant, Scope: d.Scope, Reason: d.Reason, Count: max(d.Count, 1),
			By: d.By, Parent: d.Parent}
	}
	return out, nil
}

// refusals gathers refusals of real grants and tokens until Flush writes them: a holder who hammers costs one entry a
// second, not one a call (P9).
type refusals struct {
	mu      sync.Mutex
	waiting map[refusal]*counted
	scopes  map[refusal]int // how many there are of each but for the scope
	lost    int
}

type refusal struct{ account, app, grant, scope, reason string }

type counted struct {
	at time.Time // the first
	n  int
	id string // of the entry, once a write of it was tried: it may be on record although the write failed
}

// maxRefusals bounds memory between two calls of Flush; what is beyond is counted, and Flush says so.
const maxRefusals = 10_000

// maxScopes bounds what one grant's holder can fill a user's ledger with: who tries more scopes than this between two
// calls of Flush gets one entry without a scope for the rest.
const maxScopes = 8

func (e *engine) refuse(ctx context.Context, now time.Time, r refusal) {
	e.refusals.add(now, r)
	if e.observe != nil {
		e.observe(ctx, Entry{At: now, What: "refused", Account: r.account, App: r.app, Grant: r.grant, Scope: r.scope, Reason: r.reason, Count: 1})
	}
}

func (w *refusals) add(now time.Time, r refusal) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting == nil {
		w.waiting, w.scopes = map[refusal]*counted{}, map[refusal]int{}
	}
	if w.waiting[r] == nil {
		bare := r
		bare.scope = ""
		if w.scopes[bare] >= maxScopes {
			r = bare
		} else if len(w.waiting) < maxRefusals {
			w.scopes[bare]++
		}
	}
	switch c := w.waiting[r]; {
	case c != nil:
		c.n++
	case len(w.waiting) >= maxRefusals:
		w.lost++
	default:
		w.waiting[r] = &counted{at: now, n: 1}
	}
}

// Flush writes the refusals since the last Flush to the ledger, equal ones as one entry. What could not be written is
// kept for the next call, which writes over what is there after all: a lost answer counts nothing twice. Its error also tells of refusals beyond 10,000 different ones, which were not kept.
func (e *Engine) Flush(ctx context.Context) error {
	e.refusals.mu.Lock()
	waiting, lost := e.refusals.waiting, e.refusals.lost
	e.refusals.waiting, e.refusals.scopes, e.refusals.lost = nil, nil, 0
	e.refusals.mu.Unlock()
	var failed error
	for r, c := range waiting {
		if failed == nil {
			entry := Entry{At: c.at, What: "refused", Account: r.account, App: r.app, Grant: r.grant, Scope: r.scope, Reason: r.reason, Count: c.n}
			again := c.id != ""
			if !again {
				c.id = e.entryID(c.at)
			}
			op := entry.put(e.aggregate(r.account)+"."+c.id, appendEntry(nil, &entry))
			if again {
				op.Record.Version = store.AnyVersion
			}
			if _, err := e.store.Apply(ctx, c.at, []store.Op{op}); err != nil {
				failed = err
			}
		}
		if failed != nil {
			e.putBack(r, c)
		}
	}
	if lost > 0 {
		failed = errors.Join(failed, fmt.Errorf("grant: %d refusals were too many to keep", lost))
	}
	return failed
}

func (e *Engine) putBack(r refusal, c *counted) {
	e.refusals.mu.Lock()
	defer e.refusals.mu.Unlock()
	if e.refusals.waiting == nil {
		e.refusals.waiting, e.refusals.scopes = map[refusal]*counted{}, map[refusal]int{}
	}
	switch again := e.refusals.waiting[r]; {
	case again != nil:
		again.n, again.at, again.id = again.n+c.n, c.at, c.id
	case len(e.refusals.waiting) >= maxRefusals: // a store that is away for long
		e.refusals.lost += c.n
	default:
		e.refusals.waiting[r] = c
	}
}

func (e *engine) tell(ctx context.Context, entry *Entry) {
	if e.observe != nil {
		entry.Count = max(entry.Count, 1)
		e.observe(ctx, *entry)
	}
}
