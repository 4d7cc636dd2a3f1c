package storetest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

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
