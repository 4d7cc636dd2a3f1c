package app_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz/app"
)

// feed is a server's grants endpoint: a script of answers, and after it an empty long poll.
type feed struct {
	steps []func() (*http.Response, error)
	mu    sync.Mutex
	asked []time.Time
}

// times is when it was asked.
func (f *feed) times() []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked)
}

func (f *feed) RoundTrip(r *http.Request) (*http.Response, error) {
	f.mu.Lock()
	f.asked = append(f.asked, time.Now())
	f.mu.Unlock()
	if len(f.steps) > 0 {
		step := f.steps[0]
		f.steps = f.steps[1:]
		return step()
	}
	wait, _ := time.ParseDuration(r.URL.Query().Get("wait"))
	select {
	case <-time.After(wait):
		return answer(200, "application/json", `{"grants":[]}`), nil
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}

func (f *feed) then(status int, body string, header ...string) *feed {
	f.steps = append(f.steps, func() (*http.Response, error) { return answer(status, "application/json", body, header...), nil })
	return f
}

func (f *feed) fail(err error) *feed {
	f.steps = append(f.steps, func() (*http.Response, error) { return nil, err })
	return f
}

func grants(ids ...string) string {
	var list []string
	for _, id := range ids {
		list = append(list, fmt.Sprintf(`{"id":%q,"code":"c-%s","redeem_by":%q}`, id, id, time.Now().Add(time.Minute).Format(time.RFC3339)))
	}
	return `{"grants":[` + strings.Join(list, ",") + `]}`
}

// start runs p and returns how to end it.
func start(t *testing.T, p *app.Poller) (stop func() error) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	return func() error { cancel(); return <-done }
}

func TestPollerHandsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := (&feed{}).then(200, grants("a", "b")).then(200, grants("a", "b", "c")).then(200, `{"grants":[]}`)
		got := make(chan string, 10)
		stop := start(t, &app.Poller{Client: client(f), Log: quiet, Handle: func(_ context.Context, g app.Grant) error {
			got <- g.ID + "=" + g.Code.Reveal()
			return nil
		}})
		time.Sleep(2 * time.Minute)
		require.ErrorIs(t, stop(), context.Canceled)
		close(got)
		seen := map[string]int{}
		for s := range got {
			seen[s]++
		}
		require.Equal(t, map[string]int{"a=c-a": 1, "b=c-b": 1, "c=c-c": 1}, seen)
		require.Less(t, len(f.times()), 10)
		require.Equal(t, 25*time.Second, f.times()[5].Sub(f.times()[4]), "the long poll")
	})
}

// What failed, by error or panic, comes again; what runs is not begun a second time.
func TestPollerTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &feed{}
		for range 30 {
			f.then(200, grants("bad", "wild", "slow"))
		}
		var bad, wild, slow atomic.Int32
		var log bytes.Buffer
		stop := start(t, &app.Poller{Client: client(f), Log: slog.New(slog.NewTextHandler(&log, nil)), Parallel: 3,
			Handle: func(_ context.Context, g app.Grant) error {
				switch g.ID {
				case "bad":
					if bad.Add(1) < 3 {
						return errors.New("not yet")
					}
				case "wild":
					if n := wild.Add(1); n == 1 {
						panic("boom")
					} else if n == 2 {
						runtime.Goexit()
					}
				case "slow":
					slow.Add(1)
					time.Sleep(time.Second * 3)
				}
				return nil
			}})
		time.Sleep(time.Minute)
		require.ErrorIs(t, stop(), context.Canceled)
		require.EqualValues(t, 3, bad.Load())
		require.EqualValues(t, 3, wild.Load())
		require.EqualValues(t, 1, slow.Load())
		require.Contains(t, log.String(), "not yet")
		require.Contains(t, log.String(), "boom")
		require.NotContains(t, log.String(), "c-bad", "no code in the log")
	})
}

func TestPollerBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &feed{}
		f.fail(io.ErrUnexpectedEOF).then(500, "").then(502, "<html>").then(200, "not JSON").then(302, "").then(404, "").fail(io.EOF).fail(io.EOF).
			fail(io.EOF).then(503, "", "Retry-After", "120").then(200, grants("a")).then(500, "")
		var handled atomic.Int32
		stop := start(t, &app.Poller{Client: client(f), Log: quiet, Handle: func(context.Context, app.Grant) error { handled.Add(1); return nil }})
		time.Sleep(10 * time.Minute)
		require.ErrorIs(t, stop(), context.Canceled)
		require.EqualValues(t, 1, handled.Load())
		for i, most := range []time.Duration{500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000} {
			most *= time.Millisecond
			took := f.times()[i+1].Sub(f.times()[i])
			require.GreaterOrEqual(t, took, most/2, "pause %d", i)
			require.LessOrEqual(t, took, most, "pause %d", i)
		}
		require.Equal(t, 2*time.Minute, f.times()[10].Sub(f.times()[9]), "the server asked for it")
		require.LessOrEqual(t, f.times()[12].Sub(f.times()[11]), 500*time.Millisecond, "a success starts it anew")
	})
}

// A server that answers at once, with nothing or with nothing new, is not asked in a loop.
func TestPollerDoesNotSpin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &feed{}
		for range 1000 {
			f.then(200, grants("same"))
		}
		stop := start(t, &app.Poller{Client: client(f), Log: quiet, Handle: func(context.Context, app.Grant) error { return nil }})
		time.Sleep(time.Minute)
		require.ErrorIs(t, stop(), context.Canceled)
		require.LessOrEqual(t, len(f.times()), 62)
		require.GreaterOrEqual(t, len(f.times()), 45)
	})
}

func TestPollerEndsWhenTheClientIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, code := range []string{"invalid_client", "unauthorized_client"} {
			f := (&feed{}).then(500, "").then(401, `{"error":"`+code+`"}`)
			err := (&app.Poller{Client: client(f), Log: quiet, Handle: func(context.Context, app.Grant) error { return nil }}).Run(t.Context())
			var refused *app.Error
			require.ErrorAs(t, err, &refused)
			require.Equal(t, code, refused.Code)
		}
	})
}

// No more than Parallel run at once, nothing is fetched while all are busy, and Run ends after the last of them.
func TestPollerParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := (&feed{}).then(200, grants("a", "b", "c", "d", "e"))
		var running, most, ended atomic.Int32
		stop := start(t, &app.Poller{Client: client(f), Parallel: 2, Log: quiet, Handle: func(ctx context.Context, _ app.Grant) error {
			most.Store(max(most.Load(), running.Add(1)))
			defer running.Add(-1)
			select {
			case <-time.After(40 * time.Second):
			case <-ctx.Done():
				time.Sleep(time.Second) // takes its time to end
			}
			ended.Add(1)
			return nil
		}})
		time.Sleep(30 * time.Second)
		require.Len(t, f.times(), 1, "all are busy")
		time.Sleep(20 * time.Second)
		began := time.Now()
		require.ErrorIs(t, stop(), context.Canceled)
		require.Equal(t, time.Second, time.Since(began))
		require.EqualValues(t, 2, most.Load())
		require.EqualValues(t, 4, ended.Load(), "two done, two told to end, one never begun")
		require.Zero(t, running.Load())
	})
}

func TestPollerConfiguration(t *testing.T) {
	handle := func(context.Context, app.Grant) error { return nil }
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, p := range map[string]*app.Poller{
		"no client":         {Handle: handle},
		"no handle":         {Client: client(nil)},
		"wait too long":     {Client: client(nil), Handle: handle, Wait: 31 * time.Second},
		"negative wait":     {Client: client(nil), Handle: handle, Wait: -1},
		"negative parallel": {Client: client(nil), Handle: handle, Parallel: -1},
	} {
		err := p.Run(ctx)
		require.Error(t, err, name)
		require.NotErrorIs(t, err, context.Canceled, name)
	}
	require.ErrorIs(t, (&app.Poller{Client: client(nil), Handle: handle}).Run(ctx), context.Canceled)
}
