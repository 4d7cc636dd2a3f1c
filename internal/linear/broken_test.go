package linear

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/internal/stores"
	"github.com/behest-go/behest/store"
)

// A store may break the promises in ways that show only when several are at it. Each of these must be found.
func TestBrokenStoresAreCaught(t *testing.T) {
	for _, b := range []struct {
		name   string
		broken func(node int, s store.Store) store.Store
	}{
		{"a use is read, then written", func() func(int, store.Store) store.Store {
			left := &counter{left: map[string]int64{}}
			return func(_ int, s store.Store) store.Store { return &readsThenWrites{s, left} }
		}()},
		{"a revocation is seen late on the second node", func(node int, s store.Store) store.Store {
			if node == 0 {
				return s
			}
			return &trusting{Store: s, seen: map[string]int{}}
		}},
		{"a code is redeemed twice", func(_ int, s store.Store) store.Store { return lastWriterWins{s} }},
		{"an acknowledged use is lost", func(_ int, s store.Store) store.Store { return &losing{Store: s, verb: store.VerbSpend} }},
		{"an acknowledged revocation is lost", func(_ int, s store.Store) store.Store { return &losing{Store: s, kind: "revocation"} }},
		{"an answer that got lost is asked for again", func(_ int, s store.Store) store.Store { return &again{Store: s} }},
		{"a node reads from a replica that is late", func(node int, s store.Store) store.Store {
			if node == 0 {
				return s
			}
			return &replica{Store: s, was: map[string][]store.Record{}}
		}},
	} {
		t.Run(b.name, func(t *testing.T) {
			const most = 200
			seed := uint64(time.Now().UnixNano())
			var seen tally
			w := newWorld(t, stores.Memory(t).New(t), b.broken)
			for i := range uint64(most) {
				history := w.history(seed+i, &seen)
				switch result := porcupine.CheckOperationsTimeout(model, history, checking); result {
				case porcupine.Illegal:
					t.Logf("found in history %d; %v", i+1, &seen)
					return
				case porcupine.Unknown:
					require.FailNow(t, "porcupine does not know")
				}
			}
			t.Errorf("%d histories are all in order (seed %d): %v", most, seed, &seen)
		})
	}
}

// gap lets others in.
func gap() {
	for range 30 {
		runtime.Gosched()
	}
}

// spends is the operation that spends, or -1.
func spends(ops []store.Op) int {
	for i := range ops {
		if ops[i].Verb == store.VerbSpend {
			return i
		}
	}
	return -1
}

// readsThenWrites keeps the uses left by itself: it reads them, decides, and writes what should now be left.
type readsThenWrites struct {
	store.Store
	*counter
}

type counter struct {
	mu   sync.Mutex
	left map[string]int64
}

func (c *counter) get(r store.Record) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if left, ok := c.left[r.ID]; ok {
		return left
	}
	return r.Left
}

func (s *readsThenWrites) Get(ctx context.Context, kind string, ids ...string) ([]store.Record, error) {
	got, err := s.Store.Get(ctx, kind, ids...)
	for i := range got {
		got[i].Left = s.get(got[i])
	}
	return got, err
}

func (s *readsThenWrites) Apply(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	at := spends(ops)
	if at < 0 {
		return s.Store.Apply(ctx, now, ops)
	}
	id := ops[at].Record.ID
	got, err := s.Store.Get(ctx, ops[at].Record.Kind, id)
	if err != nil || len(got) == 0 {
		return s.Store.Apply(ctx, now, ops)
	}
	left := s.get(got[0])
	gap()
	kept := clone(ops)
	kept[at] = store.Check(got[0].Kind, id, got[0].Version) // what is said of the others holds
	if left < ops[at].N || left == 0 {
		kept = kept[:at] // nothing is written
	}
	out, err := s.Store.Apply(ctx, now, kept)
	switch {
	case err != nil || !out.Applied():
		return out, err
	case len(kept) == at:
		return store.Outcome{Reason: store.Exhausted, Op: at, Version: got[0].Version, Left: left}, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left[id] = left - ops[at].N
	return store.Outcome{Left: left - ops[at].N}, nil
}

// trusting takes it that what was not revoked a moment ago is not revoked now.
type trusting struct {
	store.Store
	mu   sync.Mutex
	seen map[string]int
}

func (s *trusting) fresh(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[id]++
	return s.seen[id]%8 == 1
}

func (s *trusting) Apply(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	kept := clone(ops)
	for i := range kept {
		if r := &kept[i].Record; kept[i].Verb == store.VerbCheck && r.Kind == "revocation" && !s.fresh(r.ID) {
			r.Kind, r.Version = "nothing", 0
		}
	}
	return s.Store.Apply(ctx, now, kept)
}

// lastWriterWins writes whatever version is there.
type lastWriterWins struct{ store.Store }

func (s lastWriterWins) Apply(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	kept := clone(ops)
	for i := range kept {
		if kept[i].Verb == store.VerbPut && kept[i].Record.Version > 0 {
			kept[i].Record.Version = store.AnyVersion
		}
	}
	gap()
	return s.Store.Apply(ctx, now, kept)
}

// losing acknowledges one of seven writes of its kind, and forgets it.
type losing struct {
	store.Store
	verb store.Verb // or
	kind string     // of a Put
	mu   sync.Mutex
	n    int
}

func (s *losing) Apply(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	at := spends(ops)
	if s.verb == 0 && (ops[0].Verb != store.VerbPut || ops[0].Record.Kind != s.kind) || s.verb != 0 && at < 0 {
		return s.Store.Apply(ctx, now, ops)
	}
	s.mu.Lock()
	s.n++
	lose := s.n%7 == 0
	s.mu.Unlock()
	if !lose {
		return s.Store.Apply(ctx, now, ops)
	}
	if at < 0 {
		return store.Outcome{}, nil
	}
	kept := clone(ops)
	kept[at].N = 0 // asks
	out, err := s.Store.Apply(ctx, now, kept)
	if err == nil && out.Applied() {
		out.Left -= ops[at].N
	}
	return out, err
}

// again repeats one of seven calls by itself, as a driver may that heard nothing, and passes on what it is told then.
type again struct {
	store.Store
	mu sync.Mutex
	n  int
}

func (s *again) Apply(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	s.mu.Lock()
	s.n++
	twice := s.n%7 == 0
	s.mu.Unlock()
	if twice && spends(ops) >= 0 {
		first := clone(ops)
		last := &first[len(first)-1].Record
		last.ID += "first" // the ledger's, which would tell them apart
		_, _ = s.Store.Apply(ctx, now, first)
	}
	return s.Store.Apply(ctx, now, ops)
}

// replica answers one of two reads of a record with what it was when it was last read.
type replica struct {
	store.Store
	mu  sync.Mutex
	was map[string][]store.Record
	n   int
}

func (s *replica) Get(ctx context.Context, kind string, ids ...string) ([]store.Record, error) {
	got, err := s.Store.Get(ctx, kind, ids...)
	if err != nil || kind != "token" {
		return got, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if was, ok := s.was[ids[0]]; ok && len(was) > 0 {
		if s.n++; s.n%2 == 0 {
			return was, nil
		}
	}
	s.was[ids[0]] = got
	return got, nil
}
