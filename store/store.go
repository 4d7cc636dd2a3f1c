// Package store is how behest remembers: one interface of five methods over records of one shape.
//
// The laws, which storetest makes executable for every implementation:
//
//  1. An Apply is all or nothing, however many callers, whatever dies in between. Its operations lie in one
//     aggregate: the part of their IDs before the first ".".
//  2. What was acknowledged is kept. An error means "may have happened"; an [Outcome] means "did" or "did not".
//  3. Version is 1 at creation and one more after every Put and every Claim; Spend leaves it alone.
//  4. Left is set at creation and changed by Spend alone. It never falls below zero: of any number of
//     callers, exactly as many spend as there was to spend.
//  5. The store never reads a clock. Time comes with the call, so that tests own it.
//  6. Nothing is shared: what goes in and what comes out are copies.
//
// Format: a record is a kind, an ID, a few columns that an operator may ask for, and Data, which the store never reads.
//
// Use:
//
//	mem := store.NewMemory()
//	out, err := mem.Apply(ctx, now, []store.Op{
//		store.Check("revocation", "a1.all", 0),            // still absent
//		store.Spend("token", "a1.t7", 1, nil),             // one use
//		store.Put(store.Record{Kind: "ledger", ID: "a1.l9", Data: entry}),
//	})
package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
)

// Limits of what a store must take. Anything beyond is [ErrInvalid] before anything is written.
const (
	MaxKey   = 1024    // bytes of an ID; any byte may occur in it
	MaxData  = 1 << 20 // bytes of Data
	MaxBatch = 32      // operations in one Apply
	MaxPage  = 1000    // records in one answer of List, Claim or Purge
)

// AnyVersion, as the Version of a Put or a Delete, means "whatever is there, if anything".
const AnyVersion uint64 = math.MaxUint64

// ErrInvalid is wrapped by errors for a call that no store may carry out: operations of two aggregates, two
// operations on one record, a key or a batch that is too large, a query without what it requires. Nothing was written.
var ErrInvalid = errors.New("store: invalid call")

// A Record is what a store keeps. Its identity is Kind and ID together.
type Record struct {
	Kind     string    // what it is: a short word of lower-case letters, such as "token"
	ID       string    // 1 to MaxKey bytes; the part before the first "." names the aggregate
	Version  uint64    // 1 at creation, +1 by every Put and Claim, untouched by Spend
	Owner    string    // the account, for List; at most MaxKey bytes, may be empty
	App      string    // the app, for List and Claim; at most MaxKey bytes, may be empty
	Due      time.Time // wants attention from here on; zero: never
	NotAfter time.Time // Spend refuses from here on; Purge removes it some time after; zero: never
	Left     int64     // uses left: set at creation, changed by Spend alone
	Data     []byte    // opaque; may be nil
}

// A Store remembers records. Times are kept to the microsecond at least, and come back in UTC.
// Implementations are safe for concurrent use, and keep no reference to what they are given once they have returned.
type Store interface {
	// Get returns the records of a kind with these IDs, in the order asked for, leaving out those that do not exist.
	// What lies in one aggregate is seen at one moment: all of an Apply, or none of it.
	Get(ctx context.Context, kind string, ids ...string) ([]Record, error)
	// List returns records in the byte order of their IDs, at most q.Limit. Pages need not be of one moment, but a
	// record that is there all the while is in exactly one of them.
	List(ctx context.Context, q Query) ([]Record, error)
	// Apply carries out all operations or none, and says which one refused.
	Apply(ctx context.Context, now time.Time, ops []Op) (Outcome, error)
	// Claim leases due records (q.DueBy and until are required): it sets their Due to until and adds one to their
	// Version, so that no two workers get the same one, and a worker that comes back too late cannot write. A record
	// whose NotAfter is after q.DueBy is leased for at most half of the time between them, to the microsecond above:
	// a worker that dies with a lease leaves others time for a try. Earliest Due first; q.After and q.Reverse do not
	// apply.
	Claim(ctx context.Context, q Query, until time.Time) ([]Record, error)
	// Purge removes up to n records of a kind (1 to MaxPage) whose NotAfter is set and earlier than before, and says
	// how many.
	Purge(ctx context.Context, kind string, before time.Time, n int) (int, error)
}

// A Query selects records of one kind. Zero fields do not restrict.
type Query struct {
	Kind    string    // required
	Prefix  string    // of the ID
	Owner   string    // exactly
	App     string    // exactly
	NotApps []string  // leave these apps out
	DueBy   time.Time // Due is set and not later
	After   string    // only IDs after this one in the order asked for: the last ID of the page before
	Reverse bool      // descending order
	Limit   int       // 1 to MaxPage; 0 means 100
}

// A Verb is what an operation does.
type Verb uint8

// The verbs of [Op].
const (
	VerbPut Verb = iota + 1
	VerbDelete
	VerbCheck
	VerbSpend
)

// An Op is one operation of an Apply. Make it with Put, Delete, Check or Spend.
type Op struct {
	Verb Verb
	// Record is what to write, for a Put, and what a Spend creates when there is nothing (if Init). Otherwise only
	// its Kind, ID and Version count.
	Record Record
	N      int64 // how much to spend
	Init   bool  // a Spend may create Record
}

// Put writes a record. r.Version is the version it replaces: 0 means that it must not exist yet, AnyVersion that it
// does not matter. Left is kept when a record is replaced. A Put that refuses says Conflict.
func Put(r Record) Op { return Op{Verb: VerbPut, Record: r} }

// Delete removes a record of that version, which is never 0; with AnyVersion it also succeeds when there is none.
// A Delete that refuses says Conflict.
func Delete(kind, id string, version uint64) Op {
	return Op{Verb: VerbDelete, Record: Record{Kind: kind, ID: id, Version: version}}
}

// Check requires that a record has exactly this version; 0 means that it does not exist, AnyVersion never holds. A
// Check that refuses says Conflict.
func Check(kind, id string, version uint64) Op {
	return Op{Verb: VerbCheck, Record: Record{Kind: kind, ID: id, Version: version}}
}

// Spend takes n from the record's Left. It refuses, in this order: Missing, Expired (now is not before NotAfter),
// Exhausted (Left is smaller than n, or zero: a Spend of 0 asks whether anything is left and takes nothing). A
// non-nil init is created first when there is no such record; its Kind and ID are set to these.
func Spend(kind, id string, n int64, init *Record) Op {
	op := Op{Verb: VerbSpend, N: n}
	if init != nil {
		op.Record, op.Init = *init, true
	}
	op.Record.Kind, op.Record.ID, op.Record.Version = kind, id, 0
	return op
}

// A Reason is why an operation refused.
type Reason uint8

// The reasons of an [Outcome]. The zero Reason is none: everything was applied.
const (
	Conflict  Reason = iota + 1 // the version is another one
	Missing                     // there is no such record
	Expired                     // its NotAfter has come
	Exhausted                   // not enough left
)

// String names the reason for logs.
func (r Reason) String() string {
	switch r {
	case 0:
		return "applied"
	case Conflict:
		return "conflict"
	case Missing:
		return "missing"
	case Expired:
		return "expired"
	case Exhausted:
		return "exhausted"
	}
	return fmt.Sprintf("Reason(%d)", uint8(r))
}

// An Outcome is the answer of an Apply. Nothing was written unless Applied reports true.
type Outcome struct {
	Reason  Reason // why an operation refused; zero: all were applied
	Op      int    // the index of the first operation that refused
	Version uint64 // if it refused: the version that is there (0: no record)
	Left    int64  // the least that a Spend left behind; if it refused: what there is (0: no record)
}

// Applied reports whether everything was written.
func (o Outcome) Applied() bool { return o.Reason == 0 }

// Aggregate returns the part of an ID before the first ".".
func Aggregate(id string) string {
	if i := strings.IndexByte(id, '.'); i >= 0 {
		return id[:i]
	}
	return id
}

// Validate reports whether ops may be handed to Apply: not empty, within the limits, of one aggregate, no two on one record.
// Implementations call it first. The error wraps [ErrInvalid].
func Validate(ops []Op) error {
	if len(ops) == 0 || len(ops) > MaxBatch {
		return fmt.Errorf("%w: %d operations, want 1 to %d", ErrInvalid, len(ops), MaxBatch)
	}
	aggregate := Aggregate(ops[0].Record.ID)
	for i := range ops {
		r := &ops[i].Record
		switch {
		case ops[i].Verb < VerbPut || ops[i].Verb > VerbSpend:
			return fmt.Errorf("%w: operation %d has no verb", ErrInvalid, i)
		case r.Kind == "" || len(r.Kind) > 32:
			return fmt.Errorf("%w: operation %d: a kind has 1 to 32 bytes", ErrInvalid, i)
		case r.ID == "" || len(r.ID) > MaxKey:
			return fmt.Errorf("%w: operation %d: an ID has 1 to %d bytes", ErrInvalid, i, MaxKey)
		case len(r.Owner) > MaxKey || len(r.App) > MaxKey:
			return fmt.Errorf("%w: operation %d: an Owner or App has more than %d bytes", ErrInvalid, i, MaxKey)
		case len(r.Data) > MaxData:
			return fmt.Errorf("%w: operation %d: %d bytes of data, at most %d", ErrInvalid, i, len(r.Data), MaxData)
		case ops[i].N < 0 || r.Left < 0:
			return fmt.Errorf("%w: operation %d: negative amount", ErrInvalid, i)
		case !strings.HasPrefix(r.ID, aggregate) || len(r.ID) > len(aggregate) && r.ID[len(aggregate)] != '.':
			return fmt.Errorf("%w: operation %d is of another aggregate", ErrInvalid, i)
		}
		for j := range i {
			if ops[j].Record.ID == r.ID && ops[j].Record.Kind == r.Kind { // most IDs differ in length already
				return fmt.Errorf("%w: operations %d and %d are on one record", ErrInvalid, j, i)
			}
		}
	}
	return nil
}
