package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"github.com/behest-go/behest/store"
)

// rows are the chat's own data, wherever they lie: messages, memberships, threads, sessions, as JSON. In a server of
// yours they are tables of yours. What matters here is together.
type rows interface {
	// together runs f in one transaction, if behest's records lie in the same database: f then gets a store that
	// writes in it, and what the chat and behest write is there together or not at all. Elsewhere f gets nil. The
	// context that f is given carries the transaction: what reads or writes rows with it does so in there.
	together(ctx context.Context, f func(ctx context.Context, st store.Store) error) error
	// serial returns a number that no process gets twice.
	serial(ctx context.Context) (int64, error)
	// rev is that of the latest change of any row. Who reads after it was asked sees everything up to it.
	rev(ctx context.Context) (int64, error)
	// get returns a row, with rev 0 if there is none.
	get(ctx context.Context, place, name string) (row, error)
	// list returns the rows of a place that were changed after a rev, by the order of their changes.
	list(ctx context.Context, place string, after int64) ([]row, error)
	// put writes the value if the row is still at the rev that it was read at, and reports whether it did.
	put(ctx context.Context, place string, r row) (bool, error)
	remove(ctx context.Context, place string, names ...string) error
}

type row struct {
	name  string
	rev   int64 // of its latest change
	value []byte
}

// decode never fails for what put has written; what somebody else has changed is named.
func (r row) decode(place string, v any) error {
	if err := json.Unmarshal(r.value, v); err != nil {
		return fmt.Errorf("row %s %s: %w", place, r.name, err)
	}
	return nil
}

// load reads a row into v, and leaves v alone if there is none.
func load(ctx context.Context, in rows, place, name string, v any) error {
	r, err := in.get(ctx, place, name)
	if err != nil || r.rev == 0 {
		return err
	}
	return r.decode(place, v)
}

// change has f change a value and writes it: again with the latest value, if somebody else was faster. A row that is
// not there begins as start says. f reports whether there is anything to write.
func change[T any](ctx context.Context, in rows, place, name string, start T, f func(*T) (bool, error)) (T, error) {
	for {
		r, err := in.get(ctx, place, name)
		if err != nil {
			return start, err
		}
		v := start
		if r.rev > 0 {
			v = *new(T)
			if err := r.decode(place, &v); err != nil {
				return start, err
			}
		}
		write, err := f(&v)
		if err != nil || !write {
			return v, err
		}
		r.name = name
		if r.value, err = json.Marshal(v); err != nil {
			return start, err
		}
		if ok, err := in.put(ctx, place, r); err != nil || ok {
			return v, err
		}
	}
}

// memoryRows forget when the process ends.
type memoryRows struct {
	mu            sync.Mutex
	places        map[string]map[string]row
	last, numbers int64
}

func newMemoryRows() *memoryRows { return &memoryRows{places: map[string]map[string]row{}} }

func (m *memoryRows) together(ctx context.Context, f func(context.Context, store.Store) error) error {
	return f(context.WithoutCancel(ctx), nil)
}

func (m *memoryRows) serial(context.Context) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.numbers++
	return m.numbers, nil
}

func (m *memoryRows) rev(context.Context) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last, nil
}

func (m *memoryRows) get(_ context.Context, place, name string) (row, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.places[place][name], nil
}

func (m *memoryRows) list(_ context.Context, place string, after int64) ([]row, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []row
	for _, r := range m.places[place] {
		if r.rev > after {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b row) int { return cmp.Compare(a.rev, b.rev) })
	return out, nil
}

func (m *memoryRows) put(_ context.Context, place string, r row) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.places[place][r.name].rev != r.rev {
		return false, nil
	}
	if m.places[place] == nil {
		m.places[place] = map[string]row{}
	}
	m.last++
	m.places[place][r.name] = row{r.name, m.last, bytes.Clone(r.value)}
	return true, nil
}

func (m *memoryRows) remove(_ context.Context, place string, names ...string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range names {
		delete(m.places[place], name)
	}
	return nil
}
