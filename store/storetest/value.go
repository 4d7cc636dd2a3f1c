package storetest

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/behest-go/behest/store"
)

// special are words that would mean something if they were not taken as bytes.
var special = []string{
	"'", "''", "\"", "`", "';--", "'; DROP TABLE behest_records; --", "' OR '1'='1", "\\'", "\\", "\\x00", "E'\\\\'", "$1", "$$", "?", ":name", "@p1", "%", "_", "%s", "%00", "NULL", "nil",
	"*", "**", "[a-z]", "[^a]", "{", "}", "{}", "{a}", "}{", "a{b}c", "KEYS[1]", "ARGV[1]", "behest:", "a:b", "a|b", "a,b", "a;b", "a b", " ", "\t", "\r\n", "$3\r\nfoo\r\n", "*1", "+OK", "-ERR", "+inf", "(a", "[a", "-",
	"0", "-1", "1e3", "007", "true", "{\"a\":1}", "[1,2]", "<b>&amp;</b>", "../..", "/", "\x00", "a\x00b", "\x00\x00", "\xff", "\xff\xfe", "\xc3\x28", "\xed\xa0\x80", "\ufeff", "\u202e", "ß", "ss", "SS", "İ", "i", "I", "ı", "a\u0301", "á",
}

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
	{"copy-given", "a store writes to nothing that it is given: operations, Data and what lies behind it, IDs, queries", func(n *nodes) {
		room := append(make([]byte, 0, 64), "data"...)
		copy(room[:64][4:], strings.Repeat("#", 60))
		initial := store.Record{Kind: "kept", ID: "kept", Version: 7, Left: 5, Data: room}
		ops := []store.Op{
			store.Put(store.Record{Kind: "t", ID: "a.2", App: "x", Due: start, NotAfter: start.Add(time.Hour), Data: room}), store.Spend("t", "a.1", 1, &initial),
			store.Check("t", "a.4", 0), store.Delete("t", "a.3", store.AnyVersion),
		}
		ids, not := []string{"b.1", "a.2", "a.9", "a.1"}, []string{"z", "y", "", "y"}
		q := store.Query{Kind: "t", NotApps: not, DueBy: start}
		before := fmt.Sprintf("%+v %+v %q %q %+v", ops, initial, ids, not, q)
		n.done(ops...)
		if _, err := n.a.Get(background, "t", ids...); err != nil {
			n.Fatalf("Get: %v", err)
		}
		if _, err := n.a.List(background, q); err != nil {
			n.Fatalf("List: %v", err)
		}
		n.sameIDs("Claim", n.claim(q, start.Add(time.Minute)), "a.2")
		if after := fmt.Sprintf("%+v %+v %q %q %+v", ops, initial, ids, not, q); after != before {
			n.Errorf("what was given is now\n%s, was\n%s", after, before)
		}
		if got := string(room[:64]); got != "data"+strings.Repeat("#", 60) {
			n.Errorf("behind Data lies %q", got)
		}
	}},
	{"copy-apart", "what one call returns is apart from itself: to append to one record's Data changes no other's", func(n *nodes) {
		ids := []string{"a.1", "a.2", "a.3", "b.1"}
		for _, id := range ids {
			n.done(store.Put(store.Record{Kind: "t", ID: id, Due: start, Data: []byte("data of " + id)}))
		}
		for name, call := range map[string]func() ([]store.Record, error){
			"Get":  func() ([]store.Record, error) { return n.a.Get(background, "t", append([]string{"a.1"}, ids...)...) },
			"List": func() ([]store.Record, error) { return n.a.List(background, store.Query{Kind: "t"}) },
			"Claim": func() ([]store.Record, error) {
				return n.a.Claim(background, store.Query{Kind: "t", DueBy: start}, start.Add(1000))
			},
		} {
			got, err := call()
			if err != nil || len(got) < len(ids) {
				n.Fatalf("%s: %v, %v", name, got, err)
			}
			for i := range got {
				_ = append(got[i].Data, "overwritten by a caller"...)
			}
			for _, r := range got {
				if string(r.Data) != "data of "+r.ID {
					n.Errorf("%s: Data of %q is %q", name, r.ID, r.Data)
				}
			}
			_ = append(got[:0:len(got)], store.Record{ID: "overwritten"})
		}
		for _, id := range ids {
			if r, _ := n.get("t", id); string(r.Data) != "data of "+id {
				n.Errorf("Data of %q is %q", id, r.Data)
			}
		}
	}},
	{"copy-race", "callers use one buffer for call after call: nothing is looked at after a call has returned", func(n *nodes) {
		n.race(8, func(i int, s store.Store) {
			ops, data, app := make([]store.Op, 3), make([]byte, 100), []string{"x"}
			for j := range 12 {
				for k := range data {
					data[k] = byte('A' + (i+j)%26)
				}
				id := fmt.Sprintf("a%d.%02d", i, j)
				ops[0] = store.Put(store.Record{Kind: "t", ID: id, Due: start, Data: data[:50]})
				ops[1] = store.Spend("u", id, 1, &store.Record{Left: 3, Data: data[50:]})
				ops[2] = store.Check("t", id+"x", 0)
				out, err := s.Apply(background, start, ops)
				clear(ops)
				clear(data)
				if err != nil || !out.Applied() {
					n.Errorf("Apply: %v, %v", out, err)
					return
				}
				if _, err := s.Claim(background, store.Query{Kind: "t", DueBy: start, Prefix: id, NotApps: app}, start.Add(time.Minute)); err != nil {
					n.Errorf("Claim: %v", err)
				}
				app[0] = string(rune('a' + j))
			}
		})
		for i := range 8 {
			for j := range 12 {
				id, data := fmt.Sprintf("a%d.%02d", i, j), bytes.Repeat([]byte{byte('A' + (i+j)%26)}, 50)
				n.holds(store.Record{Kind: "t", ID: id, Version: 2, Due: start.Add(time.Minute), Data: data})
				n.holds(store.Record{Kind: "u", ID: id, Version: 1, Left: 2, Data: data})
			}
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
	{"clock-nano", "a nanosecond before its time, it is not yet time: nothing is rounded up", func(n *nodes) {
		early := start.Add(-1)
		n.done(store.Put(store.Record{Kind: "t", ID: "a.1", Left: 9, NotAfter: start, Due: start}))
		n.answers(n.applyAt(early, store.Spend("t", "a.1", 1, nil)), store.Outcome{Left: 8})
		n.answers(n.applyAt(start.Add(1), store.Spend("t", "a.1", 1, nil)), store.Outcome{Reason: store.Expired, Version: 1, Left: 8})
		n.answers(n.applyAt(early, store.Spend("t", "a.2", 1, &store.Record{Left: 1, NotAfter: start})), store.Outcome{})
		n.sameIDs("List", n.list(store.Query{Kind: "t", DueBy: early}))
		n.sameIDs("Claim", n.claim(store.Query{Kind: "t", DueBy: early}, start))
		if got := n.purge("t", start, 10); got != 0 {
			n.Errorf("Purge of what ends just then removed %d, want 0", got)
		}
		n.sameIDs("Claim on time", n.claim(store.Query{Kind: "t", DueBy: start.Add(1)}, start.Add(time.Minute)), "a.1")
		if got := n.purge("t", start.Add(time.Microsecond), 10); got != 2 {
			n.Errorf("Purge a microsecond later removed %d, want 2", got)
		}
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
		for _, year := range []int{1, 999, 1583, 1677, 1970, 2038, 2262, 2263, 9999} {
			at := time.Date(year, 12, 31, 23, 59, 59, 999999000, time.UTC)
			r := store.Record{Kind: "t", ID: fmt.Sprint("a.", year), Due: at, NotAfter: at, Left: 2}
			n.done(store.Put(r))
			r.Version = 1
			n.holds(r)
			n.answers(n.applyAt(at.Add(time.Second), store.Spend("t", r.ID, 1, nil)), store.Outcome{Reason: store.Expired, Version: 1, Left: 2})
			n.answers(n.applyAt(at.Add(-time.Second), store.Spend("t", r.ID, 1, nil)), store.Outcome{Left: 1})
		}
		first := time.Time{}.Add(time.Microsecond) // the first moment that is not the zero time
		n.done(store.Put(store.Record{Kind: "u", ID: "a.1", Due: first, NotAfter: first, Left: 2}))
		n.holds(store.Record{Kind: "u", ID: "a.1", Version: 1, Due: first, NotAfter: first, Left: 2})
		n.answers(n.applyAt(time.Time{}, store.Spend("u", "a.1", 1, nil)), store.Outcome{Left: 1})
		n.answers(n.applyAt(first, store.Spend("u", "a.1", 1, nil)), store.Outcome{Reason: store.Expired, Version: 1, Left: 1})
		n.sameIDs("Claim", n.claim(store.Query{Kind: "u", DueBy: first}, start), "a.1")
		if got := n.purge("u", start, 10); got != 1 {
			n.Errorf("Purge removed %d, want 1", got)
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
	{"id-special", "what means something to a database, a shell or a pattern means nothing in an ID, an Owner, an App or Data", func(n *nodes) {
		var every strings.Builder
		for b := range 256 {
			every.WriteByte(byte(b))
		}
		words := append(slices.Clone(special), every.String(), strings.Repeat(every.String(), 4)[:store.MaxKey-4])
		var all []store.Record
		for _, word := range words {
			for _, id := range []string{word, "a." + word, "{" + word + "}.1"} {
				all = append(all, store.Record{Kind: "t", ID: id, Owner: word, App: word, Due: start, NotAfter: start, Left: 2, Data: []byte(word)})
			}
		}
		n.fill(all...)
		for i, word := range words {
			three := all[3*i : 3*i+3]
			var ids []string
			for _, r := range three {
				n.answers(n.applyAt(start.Add(-1), store.Spend("t", r.ID, 1, nil)), store.Outcome{Left: 1})
				r.Version, r.Left = 1, 1
				n.holds(r)
				ids = append(ids, r.ID)
			}
			slices.Sort(ids)
			what := fmt.Sprintf("%q", short(word))
			n.sameIDs("by owner "+what, n.list(store.Query{Kind: "t", Owner: word}), ids...)
			n.sameIDs("by app "+what, n.list(store.Query{Kind: "t", App: word}), ids...)
			n.sameIDs("without app "+what, n.list(store.Query{Kind: "t", Owner: word, NotApps: []string{"x", word}}))
			n.sameIDs("without an app like "+what, n.list(store.Query{Kind: "t", Owner: word, NotApps: []string{word + "x", "x" + word, word + "," + word}}), ids...)
			n.sameIDs("prefix "+what, n.list(store.Query{Kind: "t", Prefix: "{" + word + "}."}), "{"+word+"}.1")
			got := n.claim(store.Query{Kind: "t", App: word, DueBy: start}, start.Add(time.Minute))
			slices.SortFunc(got, func(a, b store.Record) int { return strings.Compare(a.ID, b.ID) })
			n.sameIDs("Claim for "+what, got, ids...)
			for _, id := range ids {
				n.done(store.Delete("t", id, 2))
			}
		}
		n.sameIDs("in the end", n.list(store.Query{Kind: "t"}))
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
