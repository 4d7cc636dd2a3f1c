package outage_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/internal/crash"
	"github.com/behest-go/behest/internal/outage"
	"github.com/behest-go/behest/store"
)

const name = "fake: "

// fake is a store that can be away: then each call waits for its deadline, as at a server that keeps silent, or fails at once.
type fake struct {
	store.Store
	down, silent atomic.Bool
	calls        atomic.Int64
	// apply, if there is one, is how this one breaks the contract.
	apply func(f *fake, call int64, now time.Time, ops []store.Op) (store.Outcome, error)
}

var errAway = errors.New("the server is away")

func (f *fake) call(ctx context.Context, what string) error {
	if !f.down.Load() {
		return nil
	}
	if f.silent.Load() {
		<-ctx.Done()
		return fmt.Errorf("%s%s: %w", name, what, ctx.Err())
	}
	return fmt.Errorf("%s%s: %w", name, what, errAway)
}

func (f *fake) Get(ctx context.Context, kind string, ids ...string) ([]store.Record, error) {
	if err := f.call(ctx, "get"); err != nil {
		return nil, err
	}
	return f.Store.Get(ctx, kind, ids...)
}

func (f *fake) List(ctx context.Context, q store.Query) ([]store.Record, error) {
	if err := f.call(ctx, "list"); err != nil {
		return nil, err
	}
	return f.Store.List(ctx, q)
}

func (f *fake) Apply(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	if f.apply != nil {
		return f.apply(f, f.calls.Add(1), now, ops)
	}
	if err := f.call(ctx, "apply"); err != nil {
		return store.Outcome{}, err
	}
	return f.Store.Apply(ctx, now, ops)
}

func (f *fake) Claim(ctx context.Context, q store.Query, until time.Time) ([]store.Record, error) {
	if err := f.call(ctx, "claim"); err != nil {
		return nil, err
	}
	return f.Store.Claim(ctx, q, until)
}

func (f *fake) Purge(ctx context.Context, kind string, before time.Time, n int) (int, error) {
	if err := f.call(ctx, "purge"); err != nil {
		return 0, err
	}
	return f.Store.Purge(ctx, kind, before, n)
}

func newFake() *fake { return &fake{Store: store.NewMemory()} }

func restarts(f *fake, job crash.Job) (outage.Figures, error) {
	return outage.Restarts(context.Background(), name, job, []store.Store{f, f}, 5, func() {
		f.down.Store(true)
		<-time.After(10 * time.Millisecond) // for the workers to find out
	}, func() { f.down.Store(false) })
}

func TestRestarts(t *testing.T) {
	for what, job := range map[string]crash.Job{"spending": crash.Spending(), "granting": crash.Granting()} {
		got, err := restarts(newFake(), job)
		require.NoError(t, err, what)
		require.Greater(t, got.Acknowledged, 100, what)
		require.Greater(t, got.Unanswered, 5, what)
	}
}

// Each law is one by whose breach a store is found out.
func TestRestartsRefuses(t *testing.T) {
	background := context.Background()
	for want, apply := range map[string]func(f *fake, call int64, now time.Time, ops []store.Op) (store.Outcome, error){
		"was acknowledged and is lost": func(f *fake, call int64, now time.Time, ops []store.Op) (store.Outcome, error) {
			if call%100 == 99 {
				return store.Outcome{}, nil
			}
			return f.Store.Apply(background, now, ops)
		},
		"are spent, and": func(f *fake, call int64, now time.Time, ops []store.Op) (store.Outcome, error) {
			out, err := f.Store.Apply(background, now, ops)
			if call%100 == 99 { // sent again by itself
				_, err = f.Store.Apply(background, now, ops[1:2])
			}
			return out, err
		},
		"an error that does not name the store": func(f *fake, call int64, now time.Time, ops []store.Op) (store.Outcome, error) {
			if f.down.Load() {
				return store.Outcome{}, errAway
			}
			return f.Store.Apply(background, now, ops)
		},
		"is refused": func(f *fake, call int64, now time.Time, ops []store.Op) (store.Outcome, error) {
			if f.down.Load() {
				return store.Outcome{Reason: store.Missing, Op: 1}, nil
			}
			return f.Store.Apply(background, now, ops)
		},
	} {
		f := newFake()
		f.apply = apply
		_, err := restarts(f, crash.Spending())
		require.ErrorContains(t, err, want)
	}
}

func TestAway(t *testing.T) {
	for _, silent := range []bool{false, true} {
		f := newFake()
		f.silent.Store(silent)
		o, err := outage.Prepare(t.Context(), name, f)
		require.NoError(t, err)
		f.down.Store(true)
		require.NoError(t, o.Away(t.Context(), 50*time.Millisecond))
		f.down.Store(false)
		require.NoError(t, o.Back(t.Context(), silent))
	}
}

// prepared is a store that goes away by breaking the contract.
func prepared(t *testing.T, apply func(f *fake, call int64, now time.Time, ops []store.Op) (store.Outcome, error)) (*fake, *outage.Outage) {
	f := newFake()
	o, err := outage.Prepare(t.Context(), name, f)
	require.NoError(t, err)
	f.down.Store(true)
	f.apply = apply
	return f, o
}

func TestAwayRefuses(t *testing.T) {
	background := context.Background()
	f, o := prepared(t, nil)
	f.down.Store(false)
	err := o.Away(t.Context(), time.Second)
	require.ErrorContains(t, err, "outage: emit: it does not fail")
	require.ErrorContains(t, err, "outage: a protected handler: the answer is ")
	require.ErrorContains(t, err, "outage: GET /oauth2/grants: the answer is 200")

	f, o = prepared(t, func(*fake, int64, time.Time, []store.Op) (store.Outcome, error) {
		return store.Outcome{Reason: store.Missing, Op: 3}, nil
	})
	f.down.Store(false) // but for its writes
	err = o.Away(t.Context(), time.Second)
	require.ErrorContains(t, err, "outage: use: an error that does not name the store and the call (fake: apply)")
	require.ErrorContains(t, err, "outage: a protected handler: the answer is 401")

	_, o = prepared(t, func(*fake, int64, time.Time, []store.Op) (store.Outcome, error) {
		return store.Outcome{}, fmt.Errorf("fake: apply: the record is not there, so %w", context.Canceled)
	})
	require.NoError(t, o.Away(t.Context(), time.Second), "any error that says which store and what")

	// What has happened, although the caller was told that nobody knows, is found out where it cannot have.
	f, o = prepared(t, func(f *fake, _ int64, now time.Time, ops []store.Op) (store.Outcome, error) {
		_, _ = f.Store.Apply(background, now, ops)
		return store.Outcome{}, fmt.Errorf("fake: apply: %w", errAway)
	})
	require.NoError(t, o.Away(t.Context(), time.Second))
	f.down.Store(false)
	f.apply = nil
	require.ErrorContains(t, o.Back(t.Context(), false), "outage: afterwards, a token: 4 uses of 5")

	// A store that forgot while it was away.
	f, o = prepared(t, nil)
	f.down.Store(false)
	f.Store = store.NewMemory()
	require.ErrorContains(t, o.Back(t.Context(), true), "outage: afterwards, a code that waited: ")
}

func Example() {
	st := &fake{Store: store.NewMemory()}
	o, err := outage.Prepare(context.Background(), name, st)
	if err != nil {
		fmt.Println(err)
		return
	}
	st.down.Store(true)
	fmt.Println(o.Away(context.Background(), time.Second))
	st.down.Store(false)
	fmt.Println(o.Back(context.Background(), false))
	// Output:
	// <nil>
	// <nil>
}
