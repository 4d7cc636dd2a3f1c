package storetest

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"github.com/behest-go/behest/store"
)

var valueRules = []rule{
	{"copy-in", "what was handed in can be changed afterwards: the store has its own copy", func(n *nodes) {
		data, initial := []byte("data"), []byte("init")
		ops := []store.Op{
			store.Put(store.Record{Kind: "t", ID: "a.1", Data: data}), store.Spend("t", "a.2", 1, &store.Record{Left: 2, Data: initial}),
		}
		n.done(ops...)
		copy(data, "XXXX")
		copy(initial, "XXXX")
		ops[0].Record.ID, ops[1].Record.Left = "b.9", 99
		n.holds(store.Record{Kind: "t", ID: "a.1", Version: 1, Data: []byte("data")})
		n.holds(store.Record{Kind: "t", ID: "a.2", Version: 1, Left: 1, Data: []byte("init")})
		next := []byte("next")
		n.done(store.Put(store.Record{Kind: "t", ID: "a.1", Version: 1, Data: next}))
		copy(next, "XXXX")
		n.holds(store.Record{Kind: "t", ID: "a.1", Version: 2, Data: []byte("next")})
	}},
	{"copy-out", "what Get, List and Claim return can be changed: nobody else sees it", func(n *nodes) {
		r := full("t", "a.1")
		r.Due = start
		n.done(store.Put(r))
		got, err := n.a.Get(background, "t", "a.1")
		if err != nil || len(got) != 1 {
			n.Fatalf("Get: %v, %v", got, err)
		}
		listed, err := n.a.List(background, store.Query{Kind: "t"})
		if err != nil || len(listed) != 1 {
			n.Fatalf("List: %v, %v", listed, err)
		}
		claimed := n.claim(store.Query{Kind: "t", DueBy: start}, start.Add(time.Minute))
		if len(claimed) != 1 {
			n.Fatalf("Claim: %v", claimed)
		}
		for _, rec := range []*store.Record{&got[0], &listed[0], &claimed[0]} {
			clear(rec.Data)
			rec.Data = append(rec.Data[:1], "YYYY"...)
			rec.Left, rec.Version, rec.ID = 99, 99, "a.9"
		}
		r.Version, r.Due = 2, start.Add(time.Minute)
		n.holds(r)
		again, err := n.a.Get(background, "t", "a.1", "a.1")
		if err != nil || len(again) == 0 {
			n.Fatalf("Get: %v, %v", again, err)
		}
		clear(again[0].Data)
		for _, rec := range again[1:] {
			n.same(rec, r)
		}
	}},
	{"clock-edge", "a Spend is refused from NotAfter on, and not one microsecond before", func(n *nodes) {
		at := start
		n.done(store.Put(store.Record{Kind: "t", ID: "a.1", Left: 9, NotAfter: at}))
		n.answers(n.applyAt(at.Add(-time.Microsecond), store.Spend("t", "a.1", 1, nil)), store.Outcome{Left: 8})
		n.answers(n.applyAt(at, store.Spend("t", "a.1", 1, nil)), store.Outcome{Reason: store.Expired, Version: 1, Left: 8})
		n.answers(n.applyAt(at.Add(time.Microsecond), store.Spend("t", "a.1", 1, nil)), store.Outcome{Reason: store.Expired, Version: 1, Left: 8})
		n.answers(n.applyAt(at.Add(-time.Hour), store.Spend("t", "a.1", 1, nil)), store.Outcome{Left: 7})
		n.answers(n.applyAt(at.Add(-time.Microsecond), store.Spend("t", "a.2", 1, &store.Record{Left: 9, NotAfter: at})), store.Outcome{Left: 8})
	}},
	{"clock-is-the-callers", "the store reads no clock: what has long been over lives on, for whoever says that it is earlier", func(n *nodes) {
		past := time.Date(1999, 12, 31, 23, 59, 59, 999999000, time.UTC)
		r := store.Record{Kind: "t", ID: "a.1", Left: 2, NotAfter: past, Due: past}
		n.done(store.Put(r))
		r.Version = 1
		n.holds(r)
		n.answers(n.applyAt(past.Add(-1000), store.Spend("t", "a.1", 1, nil)), store.Outcome{Left: 1})
		n.answers(n.applyAt(time.Time{}, store.Spend("t", "a.1", 1, nil)), store.Outcome{})
		n.sameIDs("List", n.list(store.Query{Kind: "t"}), "a.1")
		n.sameIDs("Claim before", n.claim(store.Query{Kind: "t", DueBy: past.Add(-time.Microsecond)}, past))
	}},
	{"clock-never", "a zero NotAfter never comes", func(n *nodes) {
		n.done(store.Put(store.Record{Kind: "t", ID: "a.1", Left: 2}))
		n.answers(n.applyAt(time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), store.Spend("t", "a.1", 1, nil)), store.Outcome{Left: 1})
		r, _ := n.get("t", "a.1")
		if !r.Due.IsZero() || !r.NotAfter.IsZero() {
			n.Errorf("zero times came back as %v and %v", r.Due, r.NotAfter)
		}
	}},
	{"clock-zones", "times come back as the same moment in UTC, to the microsecond, wherever and however they were made", func(n *nodes) {
		now := time.Now() // with a monotonic reading, which must not come back
		for i, at := range []time.Time{
			start, start.In(time.FixedZone("Beijing", 8*3600)), start.In(time.FixedZone("odd", -12345)), now, now.UTC(),
			time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(1969, 12, 31, 23, 59, 59, 999999000, time.UTC),
			time.Date(1900, 2, 3, 4, 5, 6, 7000, time.UTC), time.Date(2254, 12, 31, 23, 59, 59, 999999000, time.UTC),
		} {
			r := store.Record{Kind: "t", ID: fmt.Sprint("a.", i), Due: at, NotAfter: at, Left: 1}
			n.done(store.Put(r))
			r.Version = 1
			n.holds(r)
			early, here := at.Add(-time.Microsecond).In(time.FixedZone("west", -7*3600)), at.In(time.FixedZone("east", 9*3600))
			n.answers(n.applyAt(here, store.Spend("t", r.ID, 0, nil)), store.Outcome{Reason: store.Expired, Version: 1, Left: 1})
			n.answers(n.applyAt(early, store.Spend("t", r.ID, 0, nil)), store.Outcome{Left: 1})
			n.sameIDs("Claim early", n.claim(store.Query{Kind: "t", DueBy: early, Prefix: r.ID}, here))
			n.sameIDs("Claim", n.claim(store.Query{Kind: "t", DueBy: here, Prefix: r.ID}, here.Add(time.Minute)), r.ID)
		}
	}},
	{"clock-far", "times of all centuries are kept, to the microsecond", func(n *nodes) {
		for _, year := range []int{1583, 1677, 1970, 2038, 2262, 2263, 9999} {
			at := time.Date(year, 12, 31, 23, 59, 59, 999999000, time.UTC)
			r := store.Record{Kind: "t", ID: fmt.Sprint("a.", year), Due: at, NotAfter: at, Left: 2}
			n.done(store.Put(r))
			r.Version = 1
			n.holds(r)
			n.answers(n.applyAt(at.Add(time.Second), store.Spend("t", r.ID, 1, nil)), store.Outcome{Reason: store.Expired, Version: 1, Left: 2})
			n.answers(n.applyAt(at.Add(-time.Second), store.Spend("t", r.ID, 1, nil)), store.Outcome{Left: 1})
		}
	}},
	{"id-bytes", "an ID may hold any byte, anywhere, and no two IDs are taken for one", func(n *nodes) {
		var all []store.Record
		for b := range 256 {
			for _, id := range []string{string([]byte{'a', byte(b)}), string([]byte{'a', '.', byte(b), 'z'}), string([]byte{byte(b)})} {
				if id == "a" { // 'a' alone is also of this form
					continue
				}
				all = append(all, store.Record{Kind: "t", ID: id, Data: []byte(id)})
			}
		}
		n.fill(all...)
		for _, r := range all {
			r.Version = 1
			n.holds(r)
		}
		n.lacks("t", "a")
		if got := len(n.list(store.Query{Kind: "t", Limit: store.MaxPage})); got != len(all) {
			n.Errorf("%d records, want %d", got, len(all))
		}
	}},
	{"id-like", "IDs that look alike to a database are different: case, trailing spaces, accents, zeros", func(n *nodes) {
		ids := []string{"a.x", "a.X", "a.x ", "a.x\x00", "a.x\t", " a.x", "a.é", "a.e\u0301", "a.\xe9", "a.1", "a.01", "a.1.0", "a.%", "a._", "a.*", "a.\\", "A.x"}
		for _, id := range ids {
			n.done(store.Put(store.Record{Kind: "t", ID: id, Owner: id, App: id, Data: []byte(id)}))
		}
		for _, id := range ids {
			n.holds(store.Record{Kind: "t", ID: id, Version: 1, Owner: id, App: id, Data: []byte(id)})
			n.sameIDs("by owner", n.list(store.Query{Kind: "t", Owner: id}), id)
			n.sameIDs("by app", n.list(store.Query{Kind: "t", App: id}), id)
		}
	}},
	{"id-long", "an ID of MaxKey bytes is taken, and its last byte counts", func(n *nodes) {
		long := "a." + strings.Repeat("k", store.MaxKey-3)
		name := strings.Repeat("n", store.MaxKey-1)
		for _, id := range []string{long + "1", long + "2", name + "1", name + "2"} {
			n.done(store.Put(store.Record{Kind: "t", ID: id, Left: 1, Data: []byte(id)}))
		}
		n.done(store.Spend("t", long+"2", 1, nil))
		n.holds(store.Record{Kind: "t", ID: long + "1", Version: 1, Left: 1, Data: []byte(long + "1")})
		n.holds(store.Record{Kind: "t", ID: long + "2", Version: 1, Data: []byte(long + "2")})
		n.holds(store.Record{Kind: "t", ID: name + "2", Version: 1, Left: 1, Data: []byte(name + "2")})
		n.sameIDs("List after", n.list(store.Query{Kind: "t", Prefix: long, After: long + "1"}), long+"2")
	}},
	{"id-dots", "the aggregate ends at the first dot; what follows is free", func(n *nodes) {
		ids := []string{"a", "a.", "a..", "a.b", "a.b.c", "a.b.c.", "b", ".", ".a", ".a.b", "a1.b"}
		for _, id := range ids {
			n.done(store.Put(store.Record{Kind: "t", ID: id, Data: []byte(id)}))
		}
		for _, id := range ids {
			n.holds(store.Record{Kind: "t", ID: id, Version: 1, Data: []byte(id)})
		}
		out := n.apply(store.Check("t", "a", 1), store.Check("t", "a.", 1), store.Check("t", "a..", 1), store.Check("t", "a.b.c", 1), store.Check("t", "a.c", 0))
		n.answers(out, store.Outcome{})
		n.answers(n.apply(store.Check("t", ".", 1), store.Check("t", ".a", 1), store.Check("t", ".a.b", 1)), store.Outcome{})
	}},
	{"data", "Data of any bytes comes back as it was: nothing, every byte, MaxData bytes", func(n *nodes) {
		every := make([]byte, 256)
		for i := range every {
			every[i] = byte(i)
		}
		large := bytes.Repeat(every, store.MaxData/len(every))
		for i, data := range [][]byte{nil, {}, {0}, every, []byte(`{"json": "\u0000"}`), large} {
			r := store.Record{Kind: "t", ID: fmt.Sprint("a.", i), Data: data}
			n.done(store.Put(r))
			r.Version = 1
			n.holds(r)
			listed := n.list(store.Query{Kind: "t", Prefix: r.ID})
			if len(listed) != 1 {
				n.Fatalf("List found %d records, want 1", len(listed))
			}
			n.same(listed[0], r)
		}
		n.done(store.Put(store.Record{Kind: "t", ID: "a.5", Version: 1, Data: []byte("small")}))
		n.holds(store.Record{Kind: "t", ID: "a.5", Version: 2, Data: []byte("small")})
	}},
	{"get", "Get returns what there is of the IDs asked for, in their order, across aggregates", func(n *nodes) {
		for _, id := range []string{"a.1", "a.2", "b.1", "b", "c.1"} {
			n.done(store.Put(store.Record{Kind: "t", ID: id, Data: []byte(id)}))
		}
		for _, c := range []struct{ ask, want []string }{
			{nil, nil},
			{[]string{"x.1"}, nil},
			{[]string{"c.1", "a.2", "b.1", "a.1", "b"}, []string{"c.1", "a.2", "b.1", "a.1", "b"}},
			{[]string{"x.1", "b", "a", "a.9", "a.1", "b.1", "y"}, []string{"b", "a.1", "b.1"}},
		} {
			got, err := n.b.Get(background, "t", c.ask...)
			if err != nil {
				n.Fatalf("Get: %v", err)
			}
			n.sameIDs(fmt.Sprintf("Get(%q)", c.ask), got, c.want...)
			for _, r := range got {
				n.same(r, store.Record{Kind: "t", ID: r.ID, Version: 1, Data: []byte(r.ID)})
			}
		}
		got, err := n.b.Get(background, "other", "a.1", "a.2")
		if err != nil {
			n.Fatalf("Get: %v", err)
		}
		n.sameIDs("Get of another kind", got)
	}},
}
