package authz_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/store"
)

// A store that is away for ten minutes costs a few lines and no work: what was to be done is done when it is back.
func TestRunThroughAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		deny := atomic.Bool{}
		servers, mem := bubble(t, 1, func(c *authz.Config) {
			c.Log = slog.New(slog.NewTextHandler(&log, nil))
			c.Permit = func(context.Context, grant.Access) error {
				if deny.Load() {
					return grant.ErrDenied
				}
				return nil
			}
		})
		az := servers[0]
		issued, err := az.Emit(t.Context(), bubbleMention("m1"))
		require.NoError(t, err)
		_, token, err := az.Engine().Redeem(t.Context(), "bookbot", issued[0].Code)
		require.NoError(t, err)
		defer background(t, func(ctx context.Context) { _ = az.Run(ctx) })()
		time.Sleep(time.Second)
		require.Empty(t, log.String())
		mem.fail(errors.New("connection refused"))
		deny.Store(true)
		for range 3 {
			_, err = az.Use(t.Context(), authz.Call{Token: token.Reveal(), Want: mayWrite})
			require.ErrorIs(t, err, grant.ErrDenied)
		}
		time.Sleep(10 * time.Minute)
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		require.Less(t, len(lines), 3*(60+2)+12, "four loops, a line each ten seconds or minute")
		seconds := map[string]int{}
		for _, line := range lines {
			require.Contains(t, line, "connection refused")
			_, what, _ := strings.Cut(line, "msg=")
			what, _, _ = strings.Cut(what, " err=")
			seconds[line[:len("time=2000-01-01T00:00:00")]+what]++
		}
		for at, n := range seconds {
			require.Equal(t, 1, n, at)
		}
		mem.fail(nil)
		time.Sleep(2 * time.Second)
		entries, err := az.Engine().Ledger(t.Context(), "zhang-san", "", 0)
		require.NoError(t, err)
		require.Equal(t, []any{"refused", 3}, []any{entries[0].What, entries[0].Count})
		require.Equal(t, 3, strings.Count(log.String(), "well again"), log.String())
		time.Sleep(2 * time.Minute)
		require.Equal(t, 4, strings.Count(log.String(), "well again"))
		quiet := log.String()
		time.Sleep(10 * time.Minute)
		require.Equal(t, quiet, log.String())
	})
}

// A store that hangs does not hang Run: each of its calls has an end.
func TestRunWithAStoreThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		hanging := &hangingStore{Store: store.NewMemory()}
		servers, _ := bubble(t, 1, func(c *authz.Config) {
			c.Store = hanging
			c.Log = slog.New(slog.NewTextHandler(&log, nil))
		})
		defer background(t, func(ctx context.Context) { _ = servers[0].Run(ctx) })()
		hanging.hang.Store(true)
		time.Sleep(5 * time.Minute)
		require.Contains(t, log.String(), "msg=deliveries")
		require.Contains(t, log.String(), "msg=purge")
		require.LessOrEqual(t, hanging.longest.Load(), int64(10*time.Second))
		hanging.hang.Store(false)
		time.Sleep(2 * time.Minute)
		require.Equal(t, 2, strings.Count(log.String(), "well again"), log.String())
	})
}

type hangingStore struct {
	store.Store
	hang    atomic.Bool
	longest atomic.Int64
}

func (s *hangingStore) wait(ctx context.Context) error {
	if !s.hang.Load() {
		return nil
	}
	began := time.Now()
	<-ctx.Done()
	s.longest.Store(max(s.longest.Load(), int64(time.Since(began))))
	return ctx.Err()
}

func (s *hangingStore) Apply(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	if err := s.wait(ctx); err != nil {
		return store.Outcome{}, err
	}
	return s.Store.Apply(ctx, now, ops)
}

func (s *hangingStore) Claim(ctx context.Context, q store.Query, until time.Time) ([]store.Record, error) {
	if err := s.wait(ctx); err != nil {
		return nil, err
	}
	return s.Store.Claim(ctx, q, until)
}

func (s *hangingStore) Purge(ctx context.Context, kind string, before time.Time, n int) (int, error) {
	if err := s.wait(ctx); err != nil {
		return 0, err
	}
	return s.Store.Purge(ctx, kind, before, n)
}
