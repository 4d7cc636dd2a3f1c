package grant

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
)

// away is a store that several processes could share, and that cannot be asked.
type away struct {
	store.Store
	yes atomic.Bool
}

func (a *away) Get(ctx context.Context, kind string, ids ...string) ([]store.Record, error) {
	if a.yes.Load() {
		return nil, errors.New("away")
	}
	return a.Store.Get(ctx, kind, ids...)
}

// P5: a node that is cut off goes by nothing for longer than the lease, though its clock is put back meanwhile.
func TestP5ClockPutBack(t *testing.T) {
	for _, back := range []time.Duration{500 * time.Millisecond, 2 * time.Second, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			st := &away{Store: store.NewMemory()}
			e, err := NewEngine(Config{Store: st, Key: NewSecret(strings.Repeat("k", 32)), Permit: func(context.Context, Access) error { return nil }})
			require.NoError(t, err)
			right, behind := e.now, time.Duration(0)
			e.now = func() time.Time { return right().Add(-behind) }
			require.NoError(t, e.Look(t.Context()))
			st.yes.Store(true)
			time.Sleep(2 * time.Second)
			_, err = e.Configuration(t.Context())
			require.NoError(t, err)
			behind = back
			time.Sleep(time.Second)
			_, err = e.Configuration(t.Context())
			require.ErrorContains(t, err, "away", back)
			st.yes.Store(false)
			_, err = e.Configuration(t.Context())
			require.NoError(t, err)
		})
	}
}
