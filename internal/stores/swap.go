package stores

import (
	"context"
	"time"

	"github.com/behest-go/behest/store"
)

// Swap is s with two kinds in each other's place: what a test does with records of one, s is asked to do with those of
// the other. So what is tested of any kind is tested of one that s keeps in a way of its own.
func Swap(s store.Store, one, other string) store.Store { return swapped{s, one, other} }

type swapped struct {
	s          store.Store
	one, other string
}

func (w swapped) kind(kind string) string {
	switch kind {
	case w.one:
		return w.other
	case w.other:
		return w.one
	}
	return kind
}

func (w swapped) back(got []store.Record, err error) ([]store.Record, error) {
	for i := range got {
		got[i].Kind = w.kind(got[i].Kind)
	}
	return got, err
}

func (w swapped) Get(ctx context.Context, kind string, ids ...string) ([]store.Record, error) {
	return w.back(w.s.Get(ctx, w.kind(kind), ids...))
}

func (w swapped) List(ctx context.Context, q store.Query) ([]store.Record, error) {
	q.Kind = w.kind(q.Kind)
	return w.back(w.s.List(ctx, q))
}

func (w swapped) Claim(ctx context.Context, q store.Query, until time.Time) ([]store.Record, error) {
	q.Kind = w.kind(q.Kind)
	return w.back(w.s.Claim(ctx, q, until))
}

func (w swapped) Purge(ctx context.Context, kind string, before time.Time, n int) (int, error) {
	return w.s.Purge(ctx, w.kind(kind), before, n)
}

func (w swapped) Apply(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	ours := make([]store.Op, len(ops))
	for i, op := range ops {
		op.Record.Kind = w.kind(op.Record.Kind)
		ours[i] = op
	}
	return w.s.Apply(ctx, now, ours)
}
