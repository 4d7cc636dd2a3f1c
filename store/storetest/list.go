package storetest

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/behest-go/behest/store"
)

// awkward holds IDs whose order depends on every byte counting for itself: in particular, what sorts before "." lies
// between an aggregate's own name and the rest of it.
var awkward = []string{
	"a", "a\x00", "a\x00.1", "a\t", "a ", "a!", "a!.z", "a-", "a-b.c", "a.", "a.\x00", "a.\x00\x00", "a. ", "a.-", "a..", "a./", "a.0", "a.1", "a.10", "a.2", "a.A", "a.B", "a.Z",
	"a._", "a.a", "a.a\x00", "a.aa", "a.b", "a.~", "a.\x7f", "a.\x80", "a.é", "a.\xff", "a.\xff\xff", "a/", "a/.1", "a0", "aa", "aa.1", "ab.1", "a\xff", "a\xff.1",
	"B", "B.1", "b", "b.1", "\x00", "\x00.1", "\xff", "\xff.1", "\xff\xff", ".", ".1", "-", "-.1", "é.1",
}

var listRules = []rule{
	{"list-order", "List is in the byte order of IDs, both ways, across aggregates", func(n *nodes) {
		var all []store.Record
		for _, id := range awkward {
			all = append(all, store.Record{Kind: "t", ID: id, Data: []byte(id)})
		}
		n.fill(all...)
		want := slices.Sorted(slices.Values(awkward))
		got := n.list(store.Query{Kind: "t"})
		n.sameIDs("List", got, want...)
		for _, r := range got {
			n.same(r, store.Record{Kind: "t", ID: r.ID, Version: 1, Data: []byte(r.ID)})
		}
		slices.Reverse(want)
		n.sameIDs("List in reverse", n.list(store.Query{Kind: "t", Reverse: true}), want...)
	}},
	{"list-prefix", "a Prefix is compared byte by byte, and nothing in it is a wildcard", func(n *nodes) {
		ids := append(slices.Clone(awkward), "a.%", "a.%x", "a.*", "a.?", "a.[", "a.[ab]", "a.^", "a.\\", "a.\\x", "a.\xff\xff\xff")
		var all []store.Record
		for _, id := range ids {
			all = append(all, store.Record{Kind: "t", ID: id})
		}
		n.fill(all...)
		slices.Sort(ids)
		for _, prefix := range []string{
			"a", "a.", "a.a", "a!", "a-", "a.1", "A", "b", "", "zz", "\x00", "\xff", "\xff\xff", "a\xff", "a.\xff", "a.\xff\xff", "a.%", "a._", "a.*", "a.?", "a.[", "a.[ab]", "a.\\", "a.x%", "é", "\xc3", ".", "a..", "a.a\x00",
		} {
			var want []string
			for _, id := range ids {
				if strings.HasPrefix(id, prefix) {
					want = append(want, id)
				}
			}
			n.sameIDs(fmt.Sprintf("prefix %q", prefix), n.list(store.Query{Kind: "t", Prefix: prefix}), want...)
			slices.Reverse(want)
			n.sameIDs(fmt.Sprintf("prefix %q in reverse", prefix), n.list(store.Query{Kind: "t", Prefix: prefix, Reverse: true}), want...)
		}
	}},
	{"list-after", "After is left out itself, need not exist, and works with Prefix and in reverse", func(n *nodes) {
		var all []store.Record
		for _, id := range awkward {
			all = append(all, store.Record{Kind: "t", ID: id})
		}
		n.fill(all...)
		sorted := slices.Sorted(slices.Values(awkward))
		for _, after := range append([]string{"a.5", "a.\x00\x00\x00", "zzz", "a.zzz", "\x00\x00", "A", "\xff\xff\xff", "Z"}, awkward...) {
			for _, prefix := range []string{"", "a", "a.", "b", "\xff"} {
				var up, down []string
				for _, id := range sorted {
					if strings.HasPrefix(id, prefix) && id > after {
						up = append(up, id)
					}
					if strings.HasPrefix(id, prefix) && id < after {
						down = append([]string{id}, down...)
					}
				}
				n.sameIDs(fmt.Sprintf("after %q with prefix %q", after, prefix), n.list(store.Query{Kind: "t", After: after, Prefix: prefix}), up...)
				n.sameIDs(fmt.Sprintf("reverse after %q with prefix %q", after, prefix), n.list(store.Query{Kind: "t", After: after, Prefix: prefix, Reverse: true}), down...)
			}
		}
	}},
	{"list-limit", "List returns at most Limit records, 100 if it is 0, and takes MaxPage", func(n *nodes) {
		var all []store.Record
		for i := range store.MaxPage + 5 {
			all = append(all, store.Record{Kind: "t", ID: fmt.Sprintf("a%02d.%03d", i%20, i/20)})
		}
		n.fill(all...)
		for _, limit := range []int{0, 1, 2, 99, 101, store.MaxPage} {
			for _, reverse := range []bool{false, true} {
				want := limit
				if limit == 0 {
					want = 100
				}
				got := n.list(store.Query{Kind: "t", Limit: limit, Reverse: reverse})
				if len(got) != want {
					n.Errorf("limit %d: %d records, want %d", limit, len(got), want)
				}
				first := "a00.000"
				if reverse {
					first = "a19.049"
				}
				if len(got) > 0 && got[0].ID != first {
					n.Errorf("limit %d begins with %q, want %q", limit, got[0].ID, first)
				}
			}
		}
	}},
	{"list-filters", "the fields of a Query restrict together, each exactly", func(n *nodes) {
		owners, apps := []string{"", "li", "li-si", "Li"}, []string{"", "bot", "bot2", "Bot"}
		var all []store.Record
		for i := range 128 {
			r := store.Record{Kind: "t", ID: fmt.Sprintf("a%d.%03d", i%5, i), Owner: owners[i%4], App: apps[i/4%4]}
			if i/16%2 == 1 {
				r.Due = start.Add(time.Duration(i/32-2) * time.Microsecond)
			}
			all = append(all, r)
		}
		n.fill(all...)
		n.fill(store.Record{Kind: "u", ID: "a1.1", Owner: "li", App: "bot", Due: start})
		slices.SortFunc(all, func(a, b store.Record) int { return strings.Compare(a.ID, b.ID) })
		for _, owner := range append(owners, "nobody") {
			for _, app := range append(apps, "nothing") {
				for _, not := range [][]string{nil, {"bot"}, {"", "Bot"}, {"bot", "bot2", "Bot", "x"}} {
					for _, dueBy := range []time.Time{{}, start, start.Add(-time.Microsecond)} {
						for _, prefix := range []string{"", "a1", "a1."} {
							q := store.Query{Kind: "t", Owner: owner, App: app, NotApps: not, DueBy: dueBy, Prefix: prefix, Limit: 200}
							var want []string
							for _, r := range all {
								if (owner == "" || r.Owner == owner) && (app == "" || r.App == app) && !slices.Contains(not, r.App) && strings.HasPrefix(r.ID, prefix) &&
									(dueBy.IsZero() || !r.Due.IsZero() && !r.Due.After(dueBy)) {
									want = append(want, r.ID)
								}
							}
							n.sameIDs(fmt.Sprintf("%+v", q), n.list(q), want...)
						}
					}
				}
			}
		}
	}},
	{"list-current", "List goes by the columns as they are now", func(n *nodes) {
		r := store.Record{Kind: "t", ID: "a.1", Owner: "li", App: "bot", Due: start}
		n.done(store.Put(r), store.Put(store.Record{Kind: "t", ID: "a.2", App: "bot"}))
		r.Version, r.Owner, r.App, r.Due = 1, "wang", "bot2", start.Add(time.Hour)
		n.done(store.Put(r))
		n.sameIDs("old owner", n.list(store.Query{Kind: "t", Owner: "li"}))
		n.sameIDs("old app", n.list(store.Query{Kind: "t", App: "bot"}), "a.2")
		n.sameIDs("old due", n.list(store.Query{Kind: "t", DueBy: start}))
		n.sameIDs("new", n.list(store.Query{Kind: "t", Owner: "wang", App: "bot2", DueBy: r.Due}), "a.1")
		n.done(store.Delete("t", "a.1", 2))
		n.sameIDs("deleted", n.list(store.Query{Kind: "t", Owner: "wang"}))
		n.sameIDs("deleted", n.list(store.Query{Kind: "t", App: "bot2"}))
	}},
	{"list-pages", "page after page, both ways and by any filter, every record comes exactly once", func(n *nodes) {
		want := n.crowd("t", 2000)
		for _, q := range []store.Query{
			{Kind: "t", Limit: 97}, {Kind: "t", Limit: 1000}, {Kind: "t", App: "app3", Limit: 50}, {Kind: "t", Prefix: "a1", Limit: 64}, {Kind: "t", Prefix: "a17.", Limit: 7},
			{Kind: "t", Owner: "owner1", Limit: 33},
		} {
			for _, reverse := range []bool{false, true} {
				q.Reverse = reverse
				var ids []string
				for _, r := range want {
					if strings.HasPrefix(r.ID, q.Prefix) && (q.App == "" || r.App == q.App) && (q.Owner == "" || r.Owner == q.Owner) {
						ids = append(ids, r.ID)
					}
				}
				if reverse {
					slices.Reverse(ids)
				}
				n.sameIDs(fmt.Sprintf("pages of %+v", q), n.pages(n.b, q), ids...)
			}
		}
	}},
	{"list-many", "10,000 records, page after page while others write: what is there all the while comes exactly once, in order, both ways and by any filter", func(n *nodes) {
		want := n.crowd("t", 10_000)
		queries := []store.Query{
			{Limit: store.MaxPage}, {Limit: store.MaxPage, Reverse: true}, {Owner: "owner1", Limit: 500}, {App: "app3", Limit: 60, Reverse: true},
			{Prefix: "a1", Limit: 700, Reverse: true}, {Prefix: "a17.", Limit: 40}, {Owner: "owner2", App: "app7", Limit: 50, Reverse: true}, {NotApps: []string{"app1", "app2"}, Limit: 900},
		}
		var readers atomic.Int64
		readers.Store(int64(len(queries)))
		n.race(len(queries)+2, func(i int, s store.Store) {
			if i >= len(queries) {
				// Write before, between and behind what is being read, and rewrite that itself. Bounded, so that
				// readers get to the end of it.
				for j := 0; j < 400 && readers.Load() > 0; j++ {
					old := want[(j*37+i)%len(want)]
					old.Version = store.AnyVersion
					extra := old
					extra.ID += fmt.Sprintf(".extra%d", i)
					other := store.Record{Kind: "t", ID: fmt.Sprintf("%c%d.%d", 'A'+j%50, i, j)}
					for _, ops := range [][]store.Op{{store.Put(old), store.Put(extra)}, {store.Put(other)}, {store.Delete("t", extra.ID, store.AnyVersion)}} {
						if out, err := s.Apply(background, start, ops); err != nil || !out.Applied() {
							n.Errorf("Apply: %v, %v", out, err)
							return
						}
					}
				}
				return
			}
			defer readers.Add(-1)
			q := queries[i]
			q.Kind = "t"
			seen := make(map[string]int)
			got := n.pages(s, q)
			for j, r := range got {
				seen[r.ID]++
				if j > 0 && (r.ID < got[j-1].ID) != q.Reverse {
					n.Errorf("%+v: %q comes after %q", q, r.ID, got[j-1].ID)
					return
				}
			}
			for _, r := range want {
				times := 0
				if strings.HasPrefix(r.ID, q.Prefix) && (q.App == "" || r.App == q.App) && (q.Owner == "" || r.Owner == q.Owner) && !slices.Contains(q.NotApps, r.App) {
					times = 1
				}
				if seen[r.ID] != times {
					n.Errorf("%+v: %q came %d times, want %d", q, r.ID, seen[r.ID], times)
					return
				}
			}
		})
	}},
}

// crowd writes k records over many aggregates and returns them in order.
func (n *nodes) crowd(kind string, k int) []store.Record {
	n.Helper()
	all := make([]store.Record, k)
	for i := range all {
		all[i] = store.Record{
			Kind: kind, ID: fmt.Sprintf("a%d.%05d", i%41, i*7919%100_000), Owner: fmt.Sprint("owner", i%3), App: fmt.Sprint("app", i%11),
		}
		if i%41 == 17 && i%2 == 0 {
			all[i].ID = fmt.Sprintf("a17.%c%05d", byte(i), i) // bytes of every kind
		}
	}
	n.fill(all...)
	slices.SortFunc(all, func(a, b store.Record) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// pages lists page after page, and stops at what no honest store needs.
func (n *nodes) pages(s store.Store, q store.Query) (all []store.Record) {
	for range 12_000/q.Limit + 1000 { // a page may be of one record, if others write just behind what was read

		page, err := s.List(background, q)
		if err != nil {
			n.Errorf("List: %v", err)
			return nil
		}
		if len(page) > q.Limit {
			n.Errorf("a page has %d records, want at most %d", len(page), q.Limit)
		}
		all = append(all, page...)
		if len(page) == 0 {
			return all
		}
		if len(all) > 20_000 {
			break
		}
		q.After = page[len(page)-1].ID
	}
	n.Errorf("there is no end of pages of %+v after %d records", q, len(all))
	return all
}
