package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/behest-go/behest/store"
)

var raceRules = []rule{
	{"spend-race", "exactly as many spend as there was to spend, however many try, on however many nodes", func(n *nodes) {
		n.done(store.Put(store.Record{Kind: "t", ID: "a.1", Left: 5}))
		n.tally(5, 64, store.Exhausted, func(int) []store.Op { return []store.Op{store.Spend("t", "a.1", 1, nil)} })
		n.holds(store.Record{Kind: "t", ID: "a.1", Version: 1})
		n.done(store.Put(store.Record{Kind: "t", ID: "a.2", Left: 11}))
		n.tally(3, 64, store.Exhausted, func(int) []store.Op { return []store.Op{store.Spend("t", "a.2", 3, nil)} })
		n.holds(store.Record{Kind: "t", ID: "a.2", Version: 1, Left: 2})
	}},
	{"create-race", "of any number that create one record, one does", func(n *nodes) {
		for round := range 8 {
			id := fmt.Sprint("a.", round)
			n.tally(1, 64, store.Conflict, func(i int) []store.Op {
				return []store.Op{store.Put(store.Record{Kind: "t", ID: id, Data: fmt.Append(nil, i)})}
			})
			if r, ok := n.get("t", id); !ok || r.Version != 1 {
				n.Errorf("version is %d, want 1", r.Version)
			}
		}
	}},
	{"replace-race", "of any number that replace one version, one does", func(n *nodes) {
		n.done(store.Put(store.Record{Kind: "t", ID: "a.1"}))
		for v := uint64(1); v < 4; v++ {
			n.tally(1, 32, store.Conflict, func(i int) []store.Op {
				return []store.Op{store.Put(store.Record{Kind: "t", ID: "a.1", Version: v})}
			})
		}
		n.tally(1, 32, store.Conflict, func(i int) []store.Op { return []store.Op{store.Delete("t", "a.1", 4)} })
	}},
	{"init-race", "a record that many create by spending is created once and never spent below zero", func(n *nodes) {
		for i := range 8 {
			id := fmt.Sprint("a.", i)
			n.tally(5, 64, store.Exhausted, func(int) []store.Op {
				return []store.Op{store.Spend("window", id, 1, &store.Record{Left: 5})}
			})
			n.holds(store.Record{Kind: "window", ID: id, Version: 1})
		}
	}},
	{"ledger-race", "what is spent and what is written beside it agree, whoever else is at work in the aggregate", func(n *nodes) {
		n.done(store.Put(store.Record{Kind: "t", ID: "a.1", Left: 40}))
		var took atomic.Int64
		n.race(16, func(i int, s store.Store) {
			for j := range 8 {
				out, err := s.Apply(background, start, []store.Op{
					store.Check("rev", "a.all", 0), store.Spend("t", "a.1", 1, nil), store.Put(store.Record{Kind: "ledger", ID: fmt.Sprintf("a.%02d.%d", i, j)}),
				})
				if err != nil {
					n.Errorf("Apply: %v", err)
				}
				if out.Applied() {
					took.Add(1)
				}
			}
		})
		if entries := len(n.list(store.Query{Kind: "ledger", Prefix: "a.", Limit: store.MaxPage})); took.Load() != 40 || entries != 40 {
			n.Errorf("%d took a use, %d wrote it down, want 40", took.Load(), entries)
		}
		n.holds(store.Record{Kind: "t", ID: "a.1", Version: 1})
	}},
	{"revoke-race", "once a write is acknowledged, no Check that it defeats succeeds on any node", func(n *nodes) {
		n.done(store.Put(store.Record{Kind: "t", ID: "a.1", Left: 1 << 40}))
		var revoked atomic.Bool
		n.race(8, func(i int, s store.Store) {
			for try := 0; try < 400; try++ {
				after := revoked.Load()
				if i == 0 && try == 20 {
					if out, err := s.Apply(background, start, []store.Op{store.Put(store.Record{Kind: "rev", ID: "a.all"})}); err != nil || !out.Applied() {
						n.Errorf("revoking: %v, %v", out, err)
					}
					revoked.Store(true)
					continue
				}
				out, err := s.Apply(background, start, []store.Op{store.Check("rev", "a.all", 0), store.Spend("t", "a.1", 1, nil)})
				switch {
				case err != nil:
					n.Errorf("Apply: %v", err)
					return
				case out.Applied() && after:
					n.Errorf("spent after the revocation was acknowledged")
					return
				case !out.Applied() && after:
					return
				}
			}
		})
	}},
	{"count-race", "no Put is lost: each that was applied has its own version", func(n *nodes) {
		n.done(store.Put(store.Record{Kind: "t", ID: "a.1"}))
		n.race(8, func(_ int, s store.Store) {
			for done, tries := 0, 0; done < 10; tries++ {
				got, err := s.Get(background, "t", "a.1")
				if err != nil || len(got) != 1 || tries > 10_000 {
					n.Errorf("Get: %v, %v, at try %d", got, err, tries)
					return
				}
				got[0].Data = append(got[0].Data, 'x')
				out, err := s.Apply(background, start, []store.Op{store.Put(got[0])})
				if err != nil {
					n.Errorf("Apply: %v", err)
					return
				}
				if out.Applied() {
					done++
				}
			}
		})
		if got, _ := n.get("t", "a.1"); len(got.Data) != 80 || got.Version != 81 {
			n.Errorf("after 80 Puts there are %d, at version %d", len(got.Data), got.Version)
		}
	}},
	{"half-read", "a Get within one aggregate sees all of an Apply or nothing", func(n *nodes) {
		n.done(store.Put(store.Record{Kind: "t", ID: "a.1"}), store.Put(store.Record{Kind: "t", ID: "a.2"}))
		var stop atomic.Bool
		n.race(4, func(i int, s store.Store) {
			if i == 0 {
				defer stop.Store(true)
				for range 100 {
					out, err := s.Apply(background, start, []store.Op{
						store.Put(store.Record{Kind: "t", ID: "a.1", Version: store.AnyVersion}), store.Put(store.Record{Kind: "t", ID: "a.2", Version: store.AnyVersion}),
					})
					if err != nil || !out.Applied() {
						n.Errorf("Apply: %v, %v", out, err)
						return
					}
				}
				return
			}
			for !stop.Load() {
				got, err := s.Get(background, "t", "a.1", "a.2")
				if err != nil || len(got) != 2 {
					n.Errorf("Get: %v, %v", got, err)
					return
				}
				if got[0].Version != got[1].Version {
					n.Errorf("saw versions %d and %d of records that are written together", got[0].Version, got[1].Version)
					return
				}
			}
		})
	}},
	{"lost-answer", "an Apply whose caller gives up in the middle is done or not done, never half", func(n *nodes) {
		var acknowledged sync.Map
		n.race(16, func(i int, s store.Store) {
			for j := range 8 {
				var ctx context.Context = &fuse{Context: background, looks: int64(j), over: make(chan struct{})}
				cancel := func() {}
				if i%2 == 0 {
					ctx, cancel = context.WithCancel(background)
					go cancel()
				}
				name := fmt.Sprintf("a%d-%d", i, j)
				out, err := s.Apply(ctx, start, []store.Op{
					store.Put(store.Record{Kind: "t", ID: name}), store.Put(store.Record{Kind: "t", ID: name + ".1"}), store.Put(store.Record{Kind: "l", ID: name + ".2"}),
				})
				cancel()
				if err == nil && out.Applied() {
					acknowledged.Store(name, true)
				}
			}
		})
		for i := range 16 {
			for j := range 8 {
				name := fmt.Sprintf("a%d-%d", i, j)
				_, one := n.get("t", name)
				_, two := n.get("t", name+".1")
				_, three := n.get("l", name+".2")
				if one != two || two != three {
					n.Errorf("%s is half there: %v %v %v", name, one, two, three)
				}
				if _, yes := acknowledged.Load(name); yes && !one {
					n.Errorf("%s was acknowledged and is not there", name)
				}
			}
		}
	}},
	{"lost-answer-told", "who repeats a call whose answer got lost is told so: a version is written, deleted or claimed once", func(n *nodes) {
		r := store.Record{Kind: "t", ID: "a.1", Left: 2, Data: []byte("first")}
		key := store.Put(store.Record{Kind: "key", ID: "a.k1"})
		for _, step := range []struct {
			ops   []store.Op
			again store.Outcome
		}{
			{[]store.Op{store.Put(r)}, store.Outcome{Reason: store.Conflict, Version: 1, Left: 2}},
			{[]store.Op{store.Put(store.Record{Kind: "t", ID: "a.1", Version: 1, Data: []byte("second")})}, store.Outcome{Reason: store.Conflict, Version: 2, Left: 2}},
			{[]store.Op{store.Spend("t", "a.1", 1, nil), key}, store.Outcome{Reason: store.Conflict, Op: 1, Version: 1}},
			{[]store.Op{store.Check("t", "a.1", 2), store.Delete("key", "a.k1", 1)}, store.Outcome{Reason: store.Conflict, Op: 1}},
			{[]store.Op{store.Spend("t", "a.1", 1, nil)}, store.Outcome{Reason: store.Exhausted, Version: 2}},
			{[]store.Op{store.Spend("w", "a.2", 2, &store.Record{Left: 3})}, store.Outcome{Reason: store.Exhausted, Version: 1, Left: 1}},
			{[]store.Op{store.Delete("t", "a.1", 2)}, store.Outcome{Reason: store.Conflict}},
		} {
			if _, err := (deaf{n.a}).Apply(background, start, step.ops); !errors.Is(err, errLost) {
				n.Fatalf("Apply: %v", err)
			}
			for i := range 4 { // where it was asked first, and elsewhere
				out, err := n.either(i).Apply(background, start, step.ops)
				if err != nil {
					n.Fatalf("Apply: %v", err)
				}
				n.answers(out, step.again)
			}
		}
		n.lacks("t", "a.1")
		n.lacks("key", "a.k1")
		n.holds(store.Record{Kind: "w", ID: "a.2", Version: 1, Left: 1})

		// A claim whose answer got lost holds until its lease is over, and then somebody gets the record.
		n.done(store.Put(store.Record{Kind: "t", ID: "b.1", Due: start, NotAfter: start}), store.Put(store.Record{Kind: "t", ID: "b.2", NotAfter: start}))
		until := start.Add(time.Minute)
		q := store.Query{Kind: "t", DueBy: start}
		if _, err := (deaf{n.b}).Claim(background, q, until); !errors.Is(err, errLost) {
			n.Fatalf("Claim: %v", err)
		}
		n.sameIDs("Claim again", n.claim(q, until))
		q.DueBy = until
		n.sameIDs("Claim when the lease is over", n.claim(q, until.Add(time.Minute)), "b.1")
		n.holds(store.Record{Kind: "t", ID: "b.1", Version: 3, Due: until.Add(time.Minute), NotAfter: start})
		if _, err := (deaf{n.b}).Purge(background, "t", until, 1); !errors.Is(err, errLost) {
			n.Fatalf("Purge: %v", err)
		}
		if got := n.purge("t", until, 10); got != 1 {
			n.Errorf("Purge again removed %d, want the one that is left", got)
		}
	}},
	{"lost-answer-once", "a Spend beside a Put of version 0 is spent once, however often it is repeated because its caller gave up, and by whom", func(n *nodes) {
		const keys = 12
		var acknowledged sync.Map // key to who was told that it is theirs
		n.done(store.Put(store.Record{Kind: "t", ID: "a.1", Left: 1000}), store.Put(store.Record{Kind: "count", ID: "a.2"}))
		n.race(8, func(i int, s store.Store) {
			for j := range keys { // every key is wanted by all
				for try := 0; ; try++ {
					ctx, cancel := context.Context(background), func() {}
					switch {
					case try >= 3:
					case (i+j)%2 == 0:
						ctx = &fuse{Context: background, looks: int64(try + j%3), over: make(chan struct{})}
					default:
						ctx, cancel = context.WithCancel(background)
						go cancel()
					}
					out, err := s.Apply(ctx, start, []store.Op{
						store.Spend("t", "a.1", 3, nil), store.Put(store.Record{Kind: "count", ID: "a.2", Version: store.AnyVersion}),
						store.Put(store.Record{Kind: "key", ID: fmt.Sprintf("a.k%d", j), Owner: fmt.Sprint("by", i)}),
					})
					cancel()
					if err == nil {
						by := fmt.Sprint("by", i)
						if !out.Applied() && (out.Reason != store.Conflict || out.Op != 2 || out.Version != 1) {
							n.Errorf("a repeat is told %+v", out)
						}
						if out.Applied() {
							if other, taken := acknowledged.LoadOrStore(fmt.Sprint("a.k", j), by); taken {
								n.Errorf("a.k%d was acknowledged to %v and to %s", j, other, by)
							}
						}
						break
					}
					if try >= 3 {
						n.Errorf("Apply: %v", err)
						return
					}
				}
			}
		})
		n.holds(store.Record{Kind: "t", ID: "a.1", Version: 1, Left: 1000 - 3*keys})
		n.holds(store.Record{Kind: "count", ID: "a.2", Version: 1 + keys})
		got := n.list(store.Query{Kind: "key"})
		if len(got) != keys {
			n.Errorf("%d keys are there, want %d", len(got), keys)
		}
		for _, r := range got {
			if by, ok := acknowledged.Load(r.ID); ok && by != r.Owner {
				n.Errorf("%s was acknowledged to %v and is there %s", r.ID, by, r.Owner)
			}
		}
	}},
	{"two-nodes", "what one node has done the other sees at once, whichever of them looked before", func(n *nodes) {
		r := store.Record{Kind: "t", ID: "a.1", Left: 20, App: "x"}
		var left int64
		for i := range 12 {
			at, other := n.either(i), n.either(i+1)
			see := func(what string, there bool) {
				n.Helper()
				for name, s := range map[string]store.Store{"the node that did it": at, "the other": other} {
					got, err := s.Get(background, "t", "a.1")
					if err != nil || len(got) == 1 != there || there && (got[0].Version != r.Version || got[0].Left != left || got[0].App != r.App || !got[0].Due.Equal(r.Due)) {
						n.Errorf("after %s, %s has %+v, %v, want version %d and %d left", what, name, got, err, r.Version, left)
					}
					if listed, err := s.List(background, store.Query{Kind: "t", App: r.App}); err != nil || len(listed) == 1 != there {
						n.Errorf("after %s, %s lists %+v, %v", what, name, listed, err)
					}
					// With a Put beside it, so that it is a write.
					out, err := s.Apply(background, start, []store.Op{store.Check("t", "a.1", r.Version), store.Put(store.Record{Kind: "l", ID: "a.1", Version: store.AnyVersion})})
					if err != nil || !out.Applied() {
						n.Errorf("after %s, %s says %+v, %v to a Check", what, name, out, err)
					}
				}
			}
			write := func(what string, op store.Op) {
				n.Helper()
				if out, err := at.Apply(background, start, []store.Op{op}); err != nil || !out.Applied() {
					n.Fatalf("%s: %+v, %v", what, out, err)
				}
			}
			r.Version, r.App, r.Due = 0, "x", start
			left = 20
			see("nothing", false)
			write("a Put", store.Put(r))
			r.Version = 1
			see("a Put", true)
			write("a Spend", store.Spend("t", "a.1", 3, nil))
			left -= 3
			see("a Spend", true)
			r.App = "y"
			write("a second Put", store.Put(r))
			r.Version = 2
			see("a second Put", true)
			r.Due = start.Add(time.Minute)
			if got, err := at.Claim(background, store.Query{Kind: "t", DueBy: start}, r.Due); err != nil || len(got) != 1 {
				n.Errorf("Claim: %v, %v", got, err)
			}
			r.Version = 3
			see("a Claim", true)
			write("a Delete", store.Delete("t", "a.1", 3))
			r.Version = 0
			see("a Delete", false)
		}
	}},
	{"half-batch", "of a full Apply whose last operation refuses nobody sees anything, also while it runs", func(n *nodes) {
		n.done(store.Put(store.Record{Kind: "t", ID: "a.1", Left: 100}), store.Put(store.Record{Kind: "t", ID: "a.2", Data: []byte("old")}), store.Put(store.Record{Kind: "t", ID: "a.3"}))
		ops := []store.Op{
			store.Put(store.Record{Kind: "t", ID: "a.new"}), store.Spend("t", "a.1", 1, nil), store.Put(store.Record{Kind: "t", ID: "a.2", Version: 1, Data: []byte("new")}),
			store.Delete("t", "a.3", 1), store.Spend("w", "a.1", 1, &store.Record{Left: 5}),
		}
		for i := len(ops); i < store.MaxBatch-1; i++ {
			ops = append(ops, store.Put(store.Record{Kind: "many", ID: fmt.Sprintf("a.%02d", i)}))
		}
		ops = append(ops, store.Spend("t", "a.none", 1, nil))
		var writers atomic.Int64
		writers.Store(2)
		n.race(6, func(i int, s store.Store) {
			if i < 2 {
				defer writers.Add(-1)
				for range 30 {
					out, err := s.Apply(background, start, ops)
					if want := (store.Outcome{Reason: store.Missing, Op: store.MaxBatch - 1}); err != nil || out != want {
						n.Errorf("Apply: %+v, %v, want %+v", out, err, want)
						return
					}
				}
				return
			}
			for writers.Load() > 0 {
				got, err := s.Get(background, "t", "a.new", "a.1", "a.2", "a.3")
				if err != nil {
					n.Errorf("Get: %v", err)
					return
				}
				if len(got) != 3 || got[0].ID != "a.1" || got[0].Left != 100 || got[1].Version != 1 || string(got[1].Data) != "old" || got[2].Version != 1 {
					n.Errorf("saw %+v of what was refused", got)
					return
				}
				if many, err := s.List(background, store.Query{Kind: "many"}); err != nil || len(many) != 0 {
					n.Errorf("List: %d records of what was refused, %v", len(many), err)
					return
				}
			}
		})
		n.sameIDs("in the end", n.list(store.Query{Kind: "t"}), "a.1", "a.2", "a.3")
		n.sameIDs("in the end", n.list(store.Query{Kind: "w"}))
	}},
	{"aggregates-race", "aggregates do not get into each other's way", func(n *nodes) {
		n.race(32, func(i int, s store.Store) {
			id := fmt.Sprintf("a%d.1", i)
			for j := range 8 {
				out, err := s.Apply(background, start, []store.Op{store.Put(store.Record{Kind: "t", ID: id, Version: uint64(j)})})
				if err != nil || !out.Applied() {
					n.Errorf("%s: %v, %v", id, out, err)
				}
			}
		})
		for i := range 32 {
			n.holds(store.Record{Kind: "t", ID: fmt.Sprintf("a%d.1", i), Version: 8})
		}
	}},
}

// A fuse is a context that is over once a store has looked at it so many times: so it ends in the middle of a call.
type fuse struct {
	context.Context
	mu    sync.Mutex
	looks int64
	over  chan struct{}
}

func (f *fuse) look() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.looks--; f.looks == -1 {
		close(f.over)
	}
	return f.looks < 0
}

func (f *fuse) Done() <-chan struct{} {
	f.look()
	return f.over
}

func (f *fuse) Err() error {
	if f.look() {
		return context.Canceled
	}
	return nil
}

// deaf is a store whose answers get lost on their way: all is done, and nobody hears of it.
type deaf struct{ store.Store }

var errLost = errors.New("the answer was lost")

func (d deaf) Apply(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	if _, err := d.Store.Apply(ctx, now, ops); err != nil {
		return store.Outcome{}, err
	}
	return store.Outcome{}, errLost
}

func (d deaf) Claim(ctx context.Context, q store.Query, until time.Time) ([]store.Record, error) {
	if _, err := d.Store.Claim(ctx, q, until); err != nil {
		return nil, err
	}
	return nil, errLost
}

func (d deaf) Purge(ctx context.Context, kind string, before time.Time, n int) (int, error) {
	if _, err := d.Store.Purge(ctx, kind, before, n); err != nil {
		return 0, err
	}
	return 0, errLost
}

// tally lets k goroutines apply at once, and requires that exactly want succeed and the others refuse for the reason.
func (n *nodes) tally(want, k int, reason store.Reason, ops func(i int) []store.Op) {
	n.Helper()
	var won atomic.Int64
	n.race(k, func(i int, s store.Store) {
		out, err := s.Apply(background, start, ops(i))
		switch {
		case err != nil:
			n.Errorf("Apply: %v", err)
		case out.Applied():
			won.Add(1)
		case out.Reason != reason:
			n.Errorf("refused with %v, want %v", out.Reason, reason)
		}
	})
	if won.Load() != int64(want) {
		n.Errorf("%d of %d succeeded, want %d", won.Load(), k, want)
	}
}
