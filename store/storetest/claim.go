package storetest

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/behest-go/behest/store"
)

var claimRules = []rule{
	{"claim", "Claim sets Due to until and adds one to Version, in the store and in what it returns, and nothing else", func(n *nodes) {
		r := full("t", "a.1")
		r.Due = start
		n.done(store.Put(r))
		until := start.Add(10*time.Second + time.Microsecond)
		got := n.claim(store.Query{Kind: "t", DueBy: start}, until)
		n.sameIDs("Claim", got, "a.1")
		r.Version, r.Due = 2, until
		for _, c := range got {
			n.same(c, r)
		}
		n.holds(r)
		n.done(store.Spend("t", "a.1", 1, nil))
		n.answers(n.apply(store.Check("t", "a.1", 2)), store.Outcome{})
	}},
	{"claim-due", "a record is due from its Due on, not one microsecond before, and without a Due never", func(n *nodes) {
		n.done(store.Put(store.Record{Kind: "t", ID: "a.1", Due: start}), store.Put(store.Record{Kind: "t", ID: "a.2"}))
		n.sameIDs("a microsecond early", n.claim(store.Query{Kind: "t", DueBy: start.Add(-time.Microsecond)}, start.Add(time.Minute)))
		n.holds(store.Record{Kind: "t", ID: "a.1", Version: 1, Due: start})
		n.sameIDs("on time", n.claim(store.Query{Kind: "t", DueBy: start}, start.Add(time.Minute)), "a.1")
		n.sameIDs("of no kind", n.claim(store.Query{Kind: "other", DueBy: start}, start.Add(time.Minute)))
		n.sameIDs("much later", n.claim(store.Query{Kind: "t", DueBy: start.AddDate(900, 0, 0)}, start.AddDate(901, 0, 0)), "a.1")
	}},
	{"claim-lease", "what was claimed is not due again before until", func(n *nodes) {
		n.done(store.Put(store.Record{Kind: "t", ID: "a.1", Due: start}))
		until := start.Add(time.Minute)
		n.sameIDs("first", n.claim(store.Query{Kind: "t", DueBy: start}, until), "a.1")
		n.sameIDs("leased", n.claim(store.Query{Kind: "t", DueBy: until.Add(-time.Microsecond)}, until.Add(time.Hour)))
		n.sameIDs("at the other node", n.list(store.Query{Kind: "t", DueBy: start}))
		n.sameIDs("lease over", n.claim(store.Query{Kind: "t", DueBy: until}, until.Add(time.Minute)), "a.1")
		n.holds(store.Record{Kind: "t", ID: "a.1", Version: 3, Due: until.Add(time.Minute)})
	}},
	{"claim-half", "a lease takes at most half of the time from DueBy to NotAfter, to the microsecond above; where there is none, all that was asked for", func(n *nodes) {
		const minute, us = time.Minute, time.Microsecond
		for i, c := range []struct{ left, lease, want time.Duration }{ // from DueBy
			{10*time.Second + us, minute, 5*time.Second + us}, {10*time.Second + 3*us, minute, 5*time.Second + 2*us}, {10*time.Second - us, minute, 5 * time.Second},
			{2 * minute, minute, minute}, {2*minute - 2*us, minute, minute - us}, {4 * minute, minute, minute}, {us, minute, us}, {2 * us, minute, us}, {3 * us, minute, 2 * us},
			{0, minute, minute}, {-minute, minute, minute}, {100 * time.Hour, 90 * time.Hour, 50 * time.Hour}, {1999*time.Second + 999_999*us, 1500 * time.Second, 1000 * time.Second},
			{900 * 24 * time.Hour, 800 * 24 * time.Hour, 450 * 24 * time.Hour},
		} {
			r := store.Record{Kind: fmt.Sprint("t", string(rune('a'+i))), ID: "a.1", App: "app", Due: start.Add(-time.Hour), NotAfter: start.Add(c.left)}
			n.done(store.Put(r))
			got := n.claim(store.Query{Kind: r.Kind, DueBy: start}, start.Add(c.lease))
			r.Version, r.Due = 2, start.Add(c.want)
			n.holds(r)
			for _, g := range got {
				n.same(g, r)
			}
			n.sameIDs("first", got, "a.1")
			n.sameIDs("leased", n.claim(store.Query{Kind: r.Kind, App: "app", DueBy: r.Due.Add(-us)}, start.Add(c.lease)))
			n.sameIDs("over", n.claim(store.Query{Kind: r.Kind, App: "app", DueBy: r.Due}, start.AddDate(9, 0, 0)), "a.1")
		}
	}},
	{"claim-fence", "a worker that comes back after its lease was given to another cannot write", func(n *nodes) {
		n.done(store.Put(store.Record{Kind: "t", ID: "a.1", Due: start}))
		first := n.claim(store.Query{Kind: "t", DueBy: start}, start.Add(time.Second))
		second := n.claim(store.Query{Kind: "t", DueBy: start.Add(time.Second)}, start.Add(time.Minute))
		if len(first) != 1 || len(second) != 1 {
			n.Fatalf("claimed %d and %d, want 1 and 1", len(first), len(second))
		}
		late, good := first[0], second[0]
		late.Data, good.Data = []byte("late"), []byte("good")
		n.answers(n.apply(store.Put(late)), store.Outcome{Reason: store.Conflict, Version: 3})
		n.answers(n.apply(store.Delete("t", "a.1", late.Version)), store.Outcome{Reason: store.Conflict, Version: 3})
		good.Due = time.Time{}
		n.answers(n.apply(store.Put(good)), store.Outcome{})
		good.Version++
		n.holds(good)
		n.sameIDs("done", n.claim(store.Query{Kind: "t", DueBy: start.AddDate(1, 0, 0)}, start.AddDate(2, 0, 0)))
	}},
	{"claim-order", "Claim takes the earliest Due first, whatever app or aggregate it is of, and at most Limit", func(n *nodes) {
		var all []store.Record
		for i := range 60 {
			all = append(all, store.Record{Kind: "t", ID: fmt.Sprintf("a%d.%d", i%7, i), App: fmt.Sprint("app", i%4), Due: start.Add(-time.Duration(i*17%60) * time.Second)})
		}
		n.fill(all...)
		slices.SortFunc(all, func(a, b store.Record) int { return a.Due.Compare(b.Due) })
		var ids []string
		for _, r := range all {
			ids = append(ids, r.ID)
		}
		until := start.Add(time.Minute)
		q := store.Query{Kind: "t", DueBy: start, Limit: 25, After: "a6", Reverse: true} // the last two do not apply
		n.sameIDs("first", n.claim(q, until), ids[:25]...)
		q.Limit = 1
		n.sameIDs("then one", n.claim(q, until), ids[25])
		q.Limit = 0
		n.sameIDs("the rest", n.claim(q, until), ids[26:]...)
		n.sameIDs("none", n.claim(q, until))
	}},
	{"claim-filters", "Claim takes only what its Query selects, earliest first, and leaves the rest as it was", func(n *nodes) {
		all := []store.Record{
			{Kind: "t", ID: "a.1", App: "x", Owner: "li", Due: start.Add(-1 * time.Second)},
			{Kind: "t", ID: "a.2", App: "y", Owner: "li", Due: start.Add(-2 * time.Second)},
			{Kind: "t", ID: "a.3", App: "x", Owner: "wang", Due: start.Add(-3 * time.Second)},
			{Kind: "t", ID: "ab.4", App: "z", Owner: "wang", Due: start.Add(-4 * time.Second)},
			{Kind: "t", ID: "b.5", Owner: "li", Due: start.Add(-5 * time.Second)},
			{Kind: "t", ID: "b.6", App: "x", Owner: "li", Due: start.Add(-6 * time.Second)},
			{Kind: "t", ID: "b.7", App: "x", Owner: "li", Due: start.Add(time.Second)},
			{Kind: "t", ID: "b.8", App: "x", Owner: "li"},
			{Kind: "u", ID: "a.1", App: "x", Owner: "li", Due: start.Add(-9 * time.Second)},
		}
		n.fill(all...)
		for _, q := range []store.Query{
			{}, {App: "x"}, {App: "nothing"}, {App: "X"}, {NotApps: []string{"x"}}, {NotApps: []string{"y", "nothing", "z"}}, {NotApps: []string{""}}, {NotApps: []string{"x", "y", "z", ""}},
			{App: "x", NotApps: []string{"x"}}, {App: "x", NotApps: []string{"y"}}, {Prefix: "a"}, {Prefix: "a."}, {Prefix: "b.6"}, {Owner: "li"}, {Owner: "wang", App: "x"},
			{Prefix: "a", Owner: "li", NotApps: []string{"y"}}, {App: "x", Prefix: "b", Limit: 1}, {Owner: "li", Limit: 2}, {NotApps: []string{"x"}, Limit: 2},
		} {
			q.Kind, q.DueBy = "t", start
			var want []string
			for _, r := range slices.Backward(all) { // which is by Due
				if r.Kind == "t" && !r.Due.IsZero() && !r.Due.After(start) && (q.App == "" || r.App == q.App) && !slices.Contains(q.NotApps, r.App) &&
					strings.HasPrefix(r.ID, q.Prefix) && (q.Owner == "" || r.Owner == q.Owner) && (q.Limit == 0 || len(want) < q.Limit) {
					want = append(want, r.ID)
				}
			}
			got := n.claim(q, start.Add(time.Hour))
			n.sameIDs(fmt.Sprintf("%+v", q), got, want...)
			for _, r := range all {
				there, _ := n.get(r.Kind, r.ID)
				if claimed := r.Kind == "t" && slices.Contains(want, r.ID); !claimed {
					n.sameTime("Due of "+r.ID, there.Due, r.Due)
					continue
				}
				there.Due = r.Due // put it back for the next query
				n.done(store.Put(there))
			}
		}
	}},
	{"claim-current", "Claim goes by Due and App as they are now", func(n *nodes) {
		at := func(id string, version uint64, app string, due time.Time) store.Op {
			return store.Put(store.Record{Kind: "t", ID: id, Version: version, App: app, Due: due})
		}
		n.done(at("a.1", 0, "x", start), at("a.2", 0, "x", start), at("a.3", 0, "x", start), at("a.4", 0, "x", time.Time{}), at("a.5", 0, "x", start.Add(time.Hour)))
		n.done(at("a.1", 1, "y", start), at("a.2", 1, "x", time.Time{}), store.Delete("t", "a.3", 1), at("a.4", 1, "x", start.Add(-2)), at("a.5", 1, "x", start))
		n.sameIDs("x", n.claim(store.Query{Kind: "t", App: "x", DueBy: start}, start.Add(time.Minute)), "a.4", "a.5")
		n.sameIDs("y", n.claim(store.Query{Kind: "t", App: "y", DueBy: start}, start.Add(time.Minute)), "a.1")
		n.done(at("a.4", 3, "x", start)) // given back before the lease was over
		n.sameIDs("given back", n.claim(store.Query{Kind: "t", DueBy: start}, start.Add(time.Minute)), "a.4")
		n.done(store.Spend("t", "a.9", 1, &store.Record{Left: 3, App: "x", Due: start}))
		n.sameIDs("created by a Spend", n.claim(store.Query{Kind: "t", App: "x", DueBy: start}, start.Add(time.Minute)), "a.9")
	}},
	{"claim-race", "no two workers get the same record, and together they get all", func(n *nodes) {
		const total = 300
		var all []store.Record
		for i := range total {
			all = append(all, store.Record{Kind: "t", ID: fmt.Sprintf("a%d.%d", i%13, i), App: fmt.Sprint("app", i%3), Due: start.Add(-time.Duration(i%5) * time.Second)})
		}
		n.fill(all...)
		var mu sync.Mutex
		got := make(map[string]int)
		n.race(8, func(i int, s store.Store) {
			q := store.Query{Kind: "t", DueBy: start, Limit: 7}
			switch i % 4 {
			case 2:
				q.App = "app1"
			case 3:
				q.NotApps = []string{"app1"}
			}
			for range total {
				some, err := s.Claim(background, q, start.Add(time.Minute))
				if err != nil {
					n.Errorf("Claim: %v", err)
				}
				if len(some) == 0 {
					return
				}
				mu.Lock()
				for _, r := range some {
					got[r.ID]++
					if r.Version != 2 {
						n.Errorf("%q was claimed at version %d, want 2", r.ID, r.Version)
					}
				}
				mu.Unlock()
			}
		})
		for _, r := range n.claim(store.Query{Kind: "t", DueBy: start, Limit: store.MaxPage}, start.Add(time.Minute)) {
			n.Errorf("%q was due and nobody got it", r.ID)
		}
		for id, times := range got {
			if times != 1 {
				n.Errorf("%q was claimed %d times", id, times)
			}
		}
		if len(got) != total {
			n.Errorf("%d records were claimed, want %d", len(got), total)
		}
	}},
	{"claim-relay", "8 workers, lease after lease: each lease of a record is one worker's, who comes back too late writes nothing, and what is done is done once", func(n *nodes) {
		const total, rounds = 90, 4
		var all []store.Record
		for i := range total {
			all = append(all, store.Record{Kind: "t", ID: fmt.Sprintf("a%d.%02d", i%13, i), App: fmt.Sprint("app", i%3), Due: start})
		}
		n.fill(all...)
		var mu sync.Mutex
		var late []store.Record // held by workers whose lease is over
		done := make(map[string]int)
		for round := range rounds {
			now := start.Add(time.Duration(round) * time.Minute)
			stale := slices.Clone(late)
			got := make(map[string]int)
			n.race(8, func(i int, s store.Store) {
				q := store.Query{Kind: "t", DueBy: now, Limit: 5}
				switch i % 4 {
				case 1:
					q.App = "app1"
				case 2:
					q.NotApps = []string{"app1", "app2"}
				case 3: // also comes back with what it held in the round before
					for j, r := range stale {
						if j%2 == i/4 {
							r.Due = time.Time{}
							if out, err := s.Apply(background, now, []store.Op{store.Put(r)}); err != nil || out.Applied() && r.Version < uint64(round)+1 {
								n.Errorf("%q of an old lease: %+v, %v", r.ID, out, err)
							} else if out.Applied() { // nobody had claimed it again yet
								mu.Lock()
								done[r.ID]++
								mu.Unlock()
							}
						}
					}
				}
				for range total {
					some, err := s.Claim(background, q, now.Add(time.Minute))
					if err != nil {
						n.Errorf("Claim: %v", err)
					}
					if len(some) == 0 {
						return
					}
					for j, r := range some {
						mu.Lock()
						got[r.ID]++
						mu.Unlock()
						if r.Version != uint64(round)+2 {
							n.Errorf("%q was claimed at version %d in round %d, want %d", r.ID, r.Version, round, round+2)
						}
						if (i+j)%3 != 0 && round < rounds-1 { // this worker dies
							mu.Lock()
							late = append(late, r)
							mu.Unlock()
							continue
						}
						r.Due = time.Time{}
						if out, err := s.Apply(background, now, []store.Op{store.Put(r)}); err != nil || !out.Applied() {
							n.Errorf("%q within its lease: %+v, %v", r.ID, out, err)
							continue
						}
						mu.Lock()
						done[r.ID]++
						mu.Unlock()
					}
				}
			})
			for id, times := range got {
				if times != 1 {
					n.Errorf("%q was claimed %d times in round %d", id, times, round)
				}
			}
			for _, r := range n.list(store.Query{Kind: "t", DueBy: now, Limit: store.MaxPage}) {
				n.Errorf("%q was due in round %d and nobody got it", r.ID, round)
			}
		}
		for _, r := range all {
			if done[r.ID] != 1 {
				n.Errorf("%q was done %d times", r.ID, done[r.ID])
			}
		}
	}},
	{"claim-write-race", "a claim and a write at the same time: one of them sees the other, and nothing that is due gets lost", func(n *nodes) {
		const total = 40
		for i := range total {
			n.done(store.Put(store.Record{Kind: "t", ID: fmt.Sprintf("a%d.1", i), Due: start}))
		}
		var mu sync.Mutex
		claims := make(map[string]uint64)
		n.race(4, func(i int, s store.Store) {
			for j := range total {
				if i >= 2 {
					some, err := s.Claim(background, store.Query{Kind: "t", DueBy: start, Limit: 3}, start.Add(time.Minute))
					if err != nil {
						n.Errorf("Claim: %v", err)
					}
					mu.Lock()
					for _, r := range some {
						claims[r.ID]++
					}
					mu.Unlock()
					continue
				}
				// Due again at once: it may be claimed once more.
				if out, err := s.Apply(background, start, []store.Op{store.Put(store.Record{Kind: "t", ID: fmt.Sprintf("a%d.1", j), Version: store.AnyVersion, Due: start})}); err != nil || !out.Applied() {
					n.Errorf("Apply: %v, %v", out, err)
				}
			}
		})
		for _, r := range n.claim(store.Query{Kind: "t", DueBy: start, Limit: store.MaxPage}, start.Add(time.Minute)) {
			claims[r.ID]++
		}
		for i := range total {
			r, _ := n.get("t", fmt.Sprintf("a%d.1", i))
			if !r.Due.Equal(start.Add(time.Minute)) || claims[r.ID] == 0 {
				n.Errorf("%q is due at %v and was claimed %d times", r.ID, r.Due, claims[r.ID])
			}
			if r.Version != 3+claims[r.ID] {
				n.Errorf("%q has version %d after 3 Puts and %d claims", r.ID, r.Version, claims[r.ID])
			}
		}
	}},
}

var purgeRules = []rule{
	{"purge", "Purge removes what has a NotAfter earlier than before, of this kind, and says how many", func(n *nodes) {
		at := func(kind, id string, notAfter time.Time) store.Record {
			return store.Record{Kind: kind, ID: id, NotAfter: notAfter, App: "x", Due: start}
		}
		n.fill(at("t", "a.1", start.Add(-time.Microsecond)), at("t", "a.2", start), at("t", "a.3", start.Add(time.Microsecond)), at("t", "a.4", time.Time{}),
			at("t", "b.1", start.Add(-time.Hour)), at("u", "a.1", start.Add(-time.Hour)))
		if got := n.purge("t", start, 100); got != 2 {
			n.Errorf("Purge removed %d, want 2", got)
		}
		n.sameIDs("left over", n.list(store.Query{Kind: "t"}), "a.2", "a.3", "a.4")
		n.sameIDs("by app", n.list(store.Query{Kind: "t", App: "x"}), "a.2", "a.3", "a.4")
		n.sameIDs("other kind", n.list(store.Query{Kind: "u"}), "a.1")
		n.lacks("t", "a.1")
		if got := n.purge("t", start, 100); got != 0 {
			n.Errorf("Purge again removed %d, want 0", got)
		}
		if got := n.purge("t", time.Time{}, 100); got != 0 {
			n.Errorf("Purge before the zero time removed %d, want 0", got)
		}
		got := n.claim(store.Query{Kind: "t", DueBy: start}, start.Add(time.Minute))
		slices.SortFunc(got, func(a, b store.Record) int { return strings.Compare(a.ID, b.ID) })
		n.sameIDs("claim", got, "a.2", "a.3", "a.4")
		n.answers(n.apply(store.Spend("t", "a.1", 1, nil)), store.Outcome{Reason: store.Missing})
		n.done(store.Put(at("t", "a.1", time.Time{})))
		n.answers(n.apply(store.Check("t", "a.1", 1)), store.Outcome{})
		if got := n.purge("t", start.AddDate(100, 0, 0), 100); got != 2 {
			n.Errorf("Purge much later removed %d, want 2", got)
		}
		n.sameIDs("left in the end", n.list(store.Query{Kind: "t"}), "a.1", "a.4")
	}},
	{"purge-bound", "Purge removes at most n, and goes on where it stopped when it is called again", func(n *nodes) {
		const total = 250
		var all []store.Record
		for i := range total {
			all = append(all, store.Record{Kind: "t", ID: fmt.Sprintf("a%d.%d", i%9, i), NotAfter: start.Add(-time.Duration(i+1) * time.Second)})
		}
		n.fill(all...)
		n.fill(store.Record{Kind: "t", ID: "b.1", NotAfter: start})
		left := total
		for _, k := range []int{1, 7, 100, store.MaxPage} {
			want := min(k, left)
			if got := n.purge("t", start, k); got != want {
				n.Errorf("Purge of %d removed %d, want %d", k, got, want)
			}
			left -= want
			if got := len(n.list(store.Query{Kind: "t", Limit: store.MaxPage})); got != left+1 {
				n.Fatalf("%d records are left, want %d", got, left+1)
			}
		}
	}},
	{"purge-current", "Purge goes by NotAfter as it is now", func(n *nodes) {
		n.fill(store.Record{Kind: "t", ID: "a.1", NotAfter: start}, store.Record{Kind: "t", ID: "a.2", NotAfter: start}, store.Record{Kind: "t", ID: "a.3"})
		n.done(store.Put(store.Record{Kind: "t", ID: "a.1", Version: 1}), store.Put(store.Record{Kind: "t", ID: "a.2", Version: 1, NotAfter: start.Add(time.Hour)}),
			store.Put(store.Record{Kind: "t", ID: "a.3", Version: 1, NotAfter: start}))
		if got := n.purge("t", start.Add(time.Minute), 100); got != 1 {
			n.Errorf("Purge removed %d, want 1", got)
		}
		n.sameIDs("left over", n.list(store.Query{Kind: "t"}), "a.1", "a.2")
	}},
	{"purge-race", "several purge at once: each record is removed, and counted, once", func(n *nodes) {
		const total = 200
		var all []store.Record
		for i := range total {
			all = append(all, store.Record{Kind: "t", ID: fmt.Sprintf("a%d.%d", i%9, i), NotAfter: start})
		}
		n.fill(all...)
		var mu sync.Mutex
		sum := 0
		n.race(4, func(_ int, s store.Store) {
			for range total {
				got, err := s.Purge(background, "t", start.Add(1000), 9)
				if err != nil {
					n.Errorf("Purge: %v", err)
				}
				if got == 0 {
					return
				}
				mu.Lock()
				sum += got
				mu.Unlock()
			}
		})
		if left := len(n.list(store.Query{Kind: "t"})); sum != total || left != 0 {
			n.Errorf("%d were removed and %d are left, want %d and 0", sum, left, total)
		}
	}},
}
