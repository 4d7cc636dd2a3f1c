package goauth2

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/behest-go/behest/store"
)

// The kinds of records. The ID of a mark is the secret's stored form, that of a family is the code's that it began
// with, or made up: each is an aggregate of its own.
const (
	kindCode    = "goauth2code"
	kindRefresh = "goauth2refresh"
	kindFamily  = "goauth2family"
	kindAccess  = "goauth2access"
)

const (
	// grace is how long what was redeemed may come again without harm: a client that lost the answer, or two of its
	// processes at once.
	grace = 10 * time.Second
	// tombstone is how long a family that has no record yet is kept dead: longer than anyone takes to write it.
	tombstone = 24 * time.Hour

	purgeEvery = 64  // writes
	purgeStep  = 320 // records of each kind
)

// A mark says of a code or a refresh token what came of it.
type mark struct {
	Family string `json:"family"`
	Client string `json:"client"`
	Spent  int64  `json:"spent,omitempty"` // microseconds; 0: not yet
}

// A family is what one sign-in has led to: of all its tokens, those that are alive, in their stored form.
type family struct {
	Dead    bool   `json:"dead,omitempty"`
	Access  string `json:"access,omitempty"`
	Refresh string `json:"refresh,omitempty"`
}

// A book remembers in the store what has been redeemed and revoked.
type book struct {
	store  store.Store
	now    func() time.Time
	writes atomic.Uint64
}

// put writes a record of that version, and reports false if another one is there.
func (b *book) put(ctx context.Context, kind, id string, version uint64, notAfter time.Time, data any) (bool, error) {
	text, err := json.Marshal(data)
	if err != nil {
		return false, err
	}
	now := b.now()
	out, err := b.store.Apply(ctx, now, []store.Op{store.Put(store.Record{Kind: kind, ID: id, Version: version, NotAfter: notAfter, Data: text})})
	if err != nil {
		return false, fmt.Errorf("goauth2: writing %s: %w", kind, err)
	}
	if b.writes.Add(1)%purgeEvery == 0 {
		for _, kind := range []string{kindCode, kindRefresh, kindFamily, kindAccess} {
			_, _ = b.store.Purge(ctx, kind, now, purgeStep) // if it fails, the next time
		}
	}
	return out.Applied(), nil
}

// get reads a record into data. Version 0 means that there is none.
func (b *book) get(ctx context.Context, kind, id string, data any) (store.Record, error) {
	found, err := b.store.Get(ctx, kind, id)
	if err != nil {
		return store.Record{}, fmt.Errorf("goauth2: reading %s: %w", kind, err)
	}
	if len(found) == 0 {
		return store.Record{}, nil
	}
	if err := json.Unmarshal(found[0].Data, data); err != nil {
		return store.Record{}, fmt.Errorf("goauth2: record %s %s: %w", kind, id, err)
	}
	return found[0], nil
}

// A verdict is what a redemption has come to.
type verdict int

const (
	won     verdict = iota // this call, and no other, has redeemed it
	unknown                // there is no such thing
	lately                 // redeemed before, not longer ago than grace
	again                  // redeemed long before: somebody has what is not theirs
)

// look says what became of a code or a refresh token; won means that it can be redeemed.
func (b *book) look(ctx context.Context, kind, id string) (mark, store.Record, verdict, error) {
	var m mark
	r, err := b.get(ctx, kind, id, &m)
	switch {
	case err != nil:
		return m, r, unknown, err
	case r.Version == 0:
		return m, r, unknown, nil
	case m.Spent == 0:
		return m, r, won, nil
	case b.now().Sub(time.UnixMicro(m.Spent)) <= grace:
		return m, r, lately, nil
	}
	return m, r, again, nil
}

// redeem is look, and consumes what can be redeemed. Of any number of calls at any time one wins.
func (b *book) redeem(ctx context.Context, kind, id string) (mark, verdict, error) {
	m, r, v, err := b.look(ctx, kind, id)
	if err != nil || v != won {
		return m, v, err
	}
	m.Spent = b.now().UnixMicro()
	ok, err := b.put(ctx, kind, id, r.Version, r.NotAfter, m)
	if err == nil && !ok {
		v = lately // another call was faster
	}
	return m, v, err
}

// kill ends a family for good, and returns what was alive of it. Who is about to write down more of it finds that it
// cannot.
func (b *book) kill(ctx context.Context, id string) (family, error) {
	for {
		var f family
		r, err := b.get(ctx, kindFamily, id, &f)
		if err != nil || f.Dead {
			return f, err
		}
		f.Dead = true
		notAfter := r.NotAfter
		if r.Version == 0 {
			notAfter = b.now().Add(tombstone)
		}
		if ok, err := b.put(ctx, kindFamily, id, r.Version, notAfter, f); err != nil || ok {
			return f, err
		}
	}
}

func newFamily() string { return "family-" + rand.Text() }
