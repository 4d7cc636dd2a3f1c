package storetest

import (
	"fmt"
	"math"
	"time"

	"github.com/behest-go/behest/store"
)

var putRules = []rule{
	{"put-new", "a Put of version 0 creates the record at version 1, with all its columns", func(n *nodes) {
		r := full("t", "a.1")
		n.answers(n.apply(store.Put(r)), store.Outcome{})
		r.Version = 1
		n.holds(r)
	}},
	{"put-new-taken", "a Put of version 0 refuses with Conflict when there is a record, and says its version and what is left", func(n *nodes) {
		r := full("t", "a.1")
		n.done(store.Put(r))
		r.Version = 1
		n.done(store.Put(r))
		again := store.Record{Kind: "t", ID: "a.1", Left: 99, Data: []byte("other")}
		n.answers(n.apply(store.Put(again)), store.Outcome{Reason: store.Conflict, Version: 2, Left: r.Left})
		r.Version = 2
		n.holds(r)
	}},
	{"put-exact", "a Put replaces the version that it names and adds one; any other version is a Conflict", func(n *nodes) {
		r := full("t", "a.1")
		r.Version = 3
		n.answers(n.apply(store.Put(r)), store.Outcome{Reason: store.Conflict})
		n.lacks("t", "a.1")
		r.Version = 0
		n.done(store.Put(r))
		for v := uint64(1); v < 5; v++ {
			for _, wrong := range []uint64{0, v - 1, v + 1, math.MaxInt64} {
				r.Version, r.Data = wrong, []byte("wrong")
				n.answers(n.apply(store.Put(r)), store.Outcome{Reason: store.Conflict, Version: v, Left: r.Left})
			}
			r.Version, r.Data = v, fmt.Appendf(nil, "version %d", v+1)
			n.answers(n.apply(store.Put(r)), store.Outcome{})
			r.Version = v + 1
			n.holds(r)
		}
	}},
	{"put-any", "a Put of AnyVersion creates at version 1 or replaces and adds one", func(n *nodes) {
		r := full("t", "a.1")
		for v := uint64(1); v < 4; v++ {
			r.Version, r.Owner = store.AnyVersion, fmt.Sprint("owner", v)
			n.done(store.Put(r))
			r.Version = v
			n.holds(r)
		}
	}},
	{"put-replaces", "a Put replaces every column but Left, also by nothing", func(n *nodes) {
		r := full("t", "a.1")
		n.done(store.Put(r))
		n.done(store.Spend("t", "a.1", 2, nil))
		bare := store.Record{Kind: "t", ID: "a.1", Version: 1, Left: 1000}
		n.done(store.Put(bare))
		bare.Version, bare.Left = 2, r.Left-2
		n.holds(bare)
		r.Version = store.AnyVersion
		n.done(store.Put(r))
		r.Version, r.Left = 3, r.Left-2
		n.holds(r)
	}},
	{"delete", "a Delete removes the version that it names, and refuses any other, or none, with Conflict", func(n *nodes) {
		r := full("t", "a.1")
		n.answers(n.apply(store.Delete("t", "a.1", 0)), store.Outcome{Reason: store.Conflict})
		n.answers(n.apply(store.Delete("t", "a.1", 1)), store.Outcome{Reason: store.Conflict})
		n.done(store.Put(r))
		for _, wrong := range []uint64{0, 2} {
			n.answers(n.apply(store.Delete("t", "a.1", wrong)), store.Outcome{Reason: store.Conflict, Version: 1, Left: r.Left})
		}
		n.answers(n.apply(store.Delete("t", "a.1", 1)), store.Outcome{})
		n.lacks("t", "a.1")
		n.sameIDs("after Delete", n.list(store.Query{Kind: "t"}))
	}},
	{"delete-any", "a Delete of AnyVersion removes what is there, and succeeds when nothing is", func(n *nodes) {
		n.answers(n.apply(store.Delete("t", "a.1", store.AnyVersion)), store.Outcome{})
		r := full("t", "a.1")
		r.Version = store.AnyVersion
		n.done(store.Put(r))
		n.done(store.Put(r))
		n.answers(n.apply(store.Delete("t", "a.1", store.AnyVersion)), store.Outcome{})
		n.lacks("t", "a.1")
	}},
	{"delete-anew", "what was deleted can be created again, at version 1 and with a new Left", func(n *nodes) {
		r := full("t", "a.1")
		n.done(store.Put(r))
		n.done(store.Spend("t", "a.1", 1, nil))
		n.done(store.Delete("t", "a.1", 1))
		r.Left = 9
		n.done(store.Put(r))
		r.Version = 1
		n.holds(r)
	}},
	{"check", "a Check accepts the version that is there, 0 for none; any other is a Conflict", func(n *nodes) {
		n.answers(n.apply(store.Check("t", "a.1", 0)), store.Outcome{})
		n.answers(n.apply(store.Check("t", "a.1", 1)), store.Outcome{Reason: store.Conflict})
		r := full("t", "a.1")
		n.done(store.Put(r))
		n.answers(n.apply(store.Check("t", "a.1", 1)), store.Outcome{})
		for _, wrong := range []uint64{0, 2} {
			n.answers(n.apply(store.Check("t", "a.1", wrong)), store.Outcome{Reason: store.Conflict, Version: 1, Left: r.Left})
		}
		r.Version = 1
		n.holds(r)
	}},
	{"kinds", "the same ID in two kinds is two records", func(n *nodes) {
		one, two := full("t", "a.1"), full("tt", "a.1")
		two.Left, two.Data = 77, []byte("two")
		n.done(store.Put(one), store.Put(two), store.Check("ttt", "a.1", 0))
		n.done(store.Spend("tt", "a.1", 7, nil))
		one.Version, two.Version, two.Left = 1, 1, 70
		n.holds(one)
		n.holds(two)
		n.done(store.Delete("t", "a.1", 1))
		n.lacks("t", "a.1")
		n.holds(two)
	}},
}

var spendRules = []rule{
	{"spend", "a Spend takes n from Left, says what it left behind, and touches nothing else, the version included", func(n *nodes) {
		r := full("t", "a.1")
		r.Left = 10
		n.done(store.Put(r))
		r.Version = 1
		for _, take := range []int64{1, 3, 0, 6} {
			r.Left -= take
			if r.Left == 0 {
				break
			}
			n.answers(n.apply(store.Spend("t", "a.1", take, nil)), store.Outcome{Left: r.Left})
			n.holds(r)
		}
		n.answers(n.apply(store.Spend("t", "a.1", 6, nil)), store.Outcome{})
		n.holds(r)
		n.answers(n.apply(store.Spend("t", "a.1", 1, nil)), store.Outcome{Reason: store.Exhausted, Version: 1})
		n.holds(r)
	}},
	{"spend-exhausted", "a Spend of more than there is refuses with Exhausted and takes nothing", func(n *nodes) {
		r := store.Record{Kind: "t", ID: "a.1", Left: 3}
		n.done(store.Put(r))
		n.answers(n.apply(store.Spend("t", "a.1", 4, nil)), store.Outcome{Reason: store.Exhausted, Version: 1, Left: 3})
		n.answers(n.apply(store.Spend("t", "a.1", math.MaxInt64, nil)), store.Outcome{Reason: store.Exhausted, Version: 1, Left: 3})
		r.Version = 1
		n.holds(r)
	}},
	{"spend-order", "a Spend refuses with Missing, else Expired, else Exhausted", func(n *nodes) {
		n.answers(n.apply(store.Spend("t", "a.1", 1, nil)), store.Outcome{Reason: store.Missing})
		n.done(store.Put(store.Record{Kind: "t", ID: "a.1", NotAfter: start}), store.Put(store.Record{Kind: "t", ID: "a.2", NotAfter: start, Left: 4}))
		n.answers(n.apply(store.Spend("t", "a.1", 1, nil)), store.Outcome{Reason: store.Expired, Version: 1})
		n.answers(n.apply(store.Spend("t", "a.2", 1, nil)), store.Outcome{Reason: store.Expired, Version: 1, Left: 4})
		n.answers(n.applyAt(start.Add(-time.Hour), store.Spend("t", "a.1", 1, nil)), store.Outcome{Reason: store.Exhausted, Version: 1})
	}},
	{"spend-zero", "a Spend of 0 asks: it takes nothing, and refuses as Exhausted when nothing is left", func(n *nodes) {
		n.answers(n.apply(store.Spend("t", "a.1", 0, nil)), store.Outcome{Reason: store.Missing})
		n.done(store.Put(store.Record{Kind: "t", ID: "a.1", Left: 1}), store.Put(store.Record{Kind: "t", ID: "a.2"}))
		n.answers(n.apply(store.Spend("t", "a.1", 0, nil)), store.Outcome{Left: 1})
		n.answers(n.apply(store.Spend("t", "a.1", 0, nil)), store.Outcome{Left: 1})
		n.answers(n.apply(store.Spend("t", "a.2", 0, nil)), store.Outcome{Reason: store.Exhausted, Version: 1})
		n.done(store.Put(store.Record{Kind: "t", ID: "a.3", Left: 1, NotAfter: start}))
		n.answers(n.apply(store.Spend("t", "a.3", 0, nil)), store.Outcome{Reason: store.Expired, Version: 1, Left: 1})
	}},
	{"spend-init", "a Spend with init creates the record, at version 1 and with its columns, and spends from it", func(n *nodes) {
		r := full("t", "a.1")
		r.Left = 5
		init := r
		init.Kind, init.ID, init.Version = "wrong", "b.1", 9
		n.answers(n.apply(store.Spend("t", "a.1", 2, &init)), store.Outcome{Left: 3})
		r.Version, r.Left = 1, 3
		n.holds(r)
		other := store.Record{Left: 1000, Data: []byte("other")}
		n.answers(n.apply(store.Spend("t", "a.1", 1, &other)), store.Outcome{Left: 2})
		r.Left = 2
		n.holds(r)
		n.answers(n.apply(store.Spend("t", "a.1", 3, &other)), store.Outcome{Reason: store.Exhausted, Version: 1, Left: 2})
		n.answers(n.apply(store.Spend("t", "a.2", 0, &other)), store.Outcome{Left: 1000})
		n.holds(store.Record{Kind: "t", ID: "a.2", Version: 1, Left: 1000, Data: other.Data})
	}},
	{"spend-init-refused", "an init that is expired or holds too little refuses like a record that is there, and is not created", func(n *nodes) {
		n.answers(n.apply(store.Spend("t", "a.1", 1, &store.Record{Left: 5, NotAfter: start})), store.Outcome{Reason: store.Expired})
		n.answers(n.apply(store.Spend("t", "a.1", 6, &store.Record{Left: 5, NotAfter: start.Add(1)})), store.Outcome{Reason: store.Expired})
		n.answers(n.apply(store.Spend("t", "a.1", 6, &store.Record{Left: 5})), store.Outcome{Reason: store.Exhausted})
		n.answers(n.apply(store.Spend("t", "a.1", 0, &store.Record{})), store.Outcome{Reason: store.Exhausted})
		n.lacks("t", "a.1")
	}},
	{"spend-huge", "Left takes any amount up to the largest int64", func(n *nodes) {
		r := store.Record{Kind: "t", ID: "a.1", Left: math.MaxInt64}
		n.done(store.Put(r))
		r.Version = 1
		n.holds(r)
		n.answers(n.apply(store.Spend("t", "a.1", 1, nil)), store.Outcome{Left: math.MaxInt64 - 1})
		n.answers(n.apply(store.Spend("t", "a.1", math.MaxInt64-1, nil)), store.Outcome{})
	}},
}

var batchRules = []rule{
	{"outcome", "an Outcome says the first operation that refused, with what is there; if none did, the least that a Spend left behind", func(n *nodes) {
		n.done(store.Put(store.Record{Kind: "t", ID: "a.1", Left: 5}), store.Put(store.Record{Kind: "t", ID: "a.2", Left: 50}))
		n.answers(n.apply(store.Check("t", "a.9", 0), store.Spend("t", "a.1", 1, nil), store.Spend("t", "a.2", 2, nil)), store.Outcome{Left: 4})
		n.answers(n.apply(store.Spend("t", "a.2", 3, nil), store.Spend("t", "a.1", 1, nil)), store.Outcome{Left: 3})
		n.answers(n.apply(store.Spend("t", "a.1", 3, nil), store.Put(store.Record{Kind: "l", ID: "a.1", Left: 8})), store.Outcome{})
		n.answers(n.apply(
			store.Check("t", "a.8", 0), store.Spend("t", "a.2", 1, nil), store.Spend("t", "a.1", 1, nil), store.Check("t", "a.9", 4),
		), store.Outcome{Reason: store.Exhausted, Op: 2, Version: 1})
		n.answers(n.apply(
			store.Spend("t", "a.2", 1, nil), store.Check("t", "a.9", 4), store.Spend("t", "a.1", 1, nil),
		), store.Outcome{Reason: store.Conflict, Op: 1})
		n.holds(store.Record{Kind: "t", ID: "a.2", Version: 1, Left: 45})
	}},
	{"all-or-nothing", "an operation that refuses, wherever it stands, leaves nothing of the others", func(n *nodes) {
		n.done(
			store.Put(store.Record{Kind: "t", ID: "a.spent"}), store.Put(store.Record{Kind: "t", ID: "a.over", Left: 1, NotAfter: start}),
			store.Put(store.Record{Kind: "t", ID: "a.left", Left: 9}), store.Put(store.Record{Kind: "t", ID: "a.old", Data: []byte("old")}),
			store.Put(store.Record{Kind: "t", ID: "a.doomed", Data: []byte("alive")}),
		)
		refusals := []struct {
			op   store.Op
			want store.Outcome
		}{
			{store.Put(store.Record{Kind: "t", ID: "a.spent"}), store.Outcome{Reason: store.Conflict, Version: 1}},
			{store.Put(store.Record{Kind: "t", ID: "a.none", Version: 2}), store.Outcome{Reason: store.Conflict}},
			{store.Delete("t", "a.spent", 7), store.Outcome{Reason: store.Conflict, Version: 1}},
			{store.Check("t", "a.over", 0), store.Outcome{Reason: store.Conflict, Version: 1, Left: 1}},
			{store.Spend("t", "a.none", 1, nil), store.Outcome{Reason: store.Missing}},
			{store.Spend("t", "a.over", 1, nil), store.Outcome{Reason: store.Expired, Version: 1, Left: 1}},
			{store.Spend("t", "a.spent", 1, nil), store.Outcome{Reason: store.Exhausted, Version: 1}},
		}
		for _, refusal := range refusals {
			effects := []store.Op{
				store.Put(store.Record{Kind: "t", ID: "a.new"}), store.Put(store.Record{Kind: "t", ID: "a.old", Version: 1, Data: []byte("new")}),
				store.Spend("t", "a.left", 2, nil), store.Spend("w", "a.window", 1, &store.Record{Left: 5}), store.Delete("t", "a.doomed", 1),
			}
			for i := 0; i <= len(effects); i++ {
				ops := append(append(append([]store.Op{}, effects[:i]...), refusal.op), effects[i:]...)
				refusal.want.Op = i
				n.answers(n.apply(ops...), refusal.want)
				n.lacks("t", "a.new")
				n.lacks("t", "a.none")
				n.lacks("w", "a.window")
				n.holds(store.Record{Kind: "t", ID: "a.old", Version: 1, Data: []byte("old")})
				n.holds(store.Record{Kind: "t", ID: "a.left", Version: 1, Left: 9})
				n.holds(store.Record{Kind: "t", ID: "a.doomed", Version: 1, Data: []byte("alive")})
				if n.Failed() {
					n.Fatalf("with %+v at %d", refusal.op, i)
				}
			}
		}
	}},
	{"batch-full", "an Apply takes MaxBatch operations of every verb", func(n *nodes) {
		var first, second []store.Op
		for i := range store.MaxBatch {
			id := fmt.Sprintf("a.%02d", i)
			first = append(first, store.Put(store.Record{Kind: "t", ID: id, Left: 5}))
			switch i % 4 {
			case 0:
				second = append(second, store.Put(store.Record{Kind: "t", ID: id, Version: 1, Owner: "o"}))
			case 1:
				second = append(second, store.Delete("t", id, 1))
			case 2:
				second = append(second, store.Check("t", id, 1))
			case 3:
				second = append(second, store.Spend("t", id, int64(i%5), nil))
			}
		}
		n.done(first...)
		n.answers(n.apply(second...), store.Outcome{Left: 1})
		for i := range store.MaxBatch {
			want := store.Record{Kind: "t", ID: fmt.Sprintf("a.%02d", i), Version: 1, Left: 5}
			switch i % 4 {
			case 0:
				want.Version, want.Owner = 2, "o"
			case 1:
				n.lacks("t", want.ID)
				continue
			case 3:
				want.Left -= int64(i % 5)
			}
			n.holds(want)
		}
	}},
	{"batch-kinds", "an Apply may touch several kinds, and the aggregate's own name as an ID", func(n *nodes) {
		n.done(store.Put(store.Record{Kind: "account", ID: "a"}), store.Put(store.Record{Kind: "t", ID: "a.1", Left: 2}))
		out := n.apply(store.Check("account", "a", 1), store.Check("rev", "a.app", 0), store.Check("rev", "a.grant", 0),
			store.Spend("t", "a.1", 1, nil), store.Put(store.Record{Kind: "ledger", ID: "a.1"}))
		n.answers(out, store.Outcome{Left: 1})
		n.done(store.Put(store.Record{Kind: "account", ID: "a", Version: 1}))
		out = n.apply(store.Check("account", "a", 1), store.Spend("t", "a.1", 1, nil), store.Put(store.Record{Kind: "ledger", ID: "a.2"}))
		n.answers(out, store.Outcome{Reason: store.Conflict, Version: 2})
		n.lacks("ledger", "a.2")
	}},
}

// full returns a record with every column set, to be put.
func full(kind, id string) store.Record {
	return store.Record{
		Kind: kind, ID: id, Owner: "li-si", App: "bookbot", Due: start.Add(time.Minute + time.Microsecond), NotAfter: start.Add(time.Hour - time.Microsecond),
		Left: 7, Data: []byte("data of " + id),
	}
}
