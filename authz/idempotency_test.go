package authz_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/authztest"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

func (g *guarded) keyed(key, path, body string) *http.Request {
	r := httptest.NewRequest("POST", path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+g.token)
	r.Header.Set("Idempotency-Key", key)
	return r
}

// require42 guards a handler and counts how often it ran.
func (g *guarded) require42(runs *int, f http.HandlerFunc, options ...authz.Option) http.Handler {
	return g.Require("group:42/message.write", options...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*runs++
		f(w, r)
	}))
}

func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(err)
	}
	w.Header().Set("Content-Type", "text/plain")
	w.Header()["X-Two"] = []string{"a", "b"}
	http.SetCookie(w, &http.Cookie{Name: "session", Value: "secret"})
	w.WriteHeader(http.StatusCreated)
	w.Header().Set("X-Late", "not sent")
	_, _ = w.Write(body)
}

// A retry gets what was answered, and nothing else happens.
func TestIdempotencyKey(t *testing.T) {
	g := newGuarded(t, group42)
	runs, outer := 0, 0
	guard := g.require42(&runs, echo)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		outer++
		w.Header().Set("X-Request-Id", strconv.Itoa(outer)) // of what stands around it, each answer has its own
		guard.ServeHTTP(w, r)
	})
	before := g.store.applies.Load()
	first := serve(h, g.keyed(`"k1"`, "/groups/42/messages?x=1", "hello \xff\n"))
	require.Equal(t, before+2, g.store.applies.Load(), "the use with the key, and the answer")
	require.Equal(t, 201, first.Code)
	require.Equal(t, "hello \xff\n", first.Body.String())
	require.Empty(t, first.Header().Get("Idempotency-Replayed"))
	require.Contains(t, first.Result().Header.Get("Set-Cookie"), "session")
	require.Empty(t, first.Result().Header.Get("X-Late"))
	for n, key := range []string{`"k1"`, `k1`, ` "k1" `} {
		again := serve(h, g.keyed(key, "/groups/42/messages?x=1", "hello \xff\n"))
		require.Equal(t, 201, again.Code)
		require.Equal(t, first.Body.String(), again.Body.String())
		require.Equal(t, http.Header{"Content-Type": {"text/plain"}, "X-Two": {"a", "b"}, "Idempotency-Replayed": {"true"}, "X-Request-Id": {strconv.Itoa(n + 2)}}, again.Result().Header)
	}
	require.Equal(t, 1, runs)
	require.Equal(t, 9, g.left(g.token))
	require.NotContains(t, g.store.written.String(), "session")

	// Another request, with the same key.
	for _, r := range []*http.Request{g.keyed("k1", "/groups/42/messages?x=1", "hello"), g.keyed("k1", "/groups/42/messages?x=2", "hello \xff\n"), g.keyed("k1", "/", "hello \xff\n")} {
		rec := serve(h, r)
		require.Equal(t, 422, rec.Code)
		require.JSONEq(t, `{"error":"invalid_request","error_description":"the Idempotency-Key was used for another request","error_reason":"key_reused"}`, rec.Body.String())
	}
	r := g.keyed("k1", "/groups/42/messages?x=1", "hello \xff\n")
	r.Method = "PUT"
	require.Equal(t, 422, serve(h, r).Code)
	require.Equal(t, 1, runs)

	// Another key, and the same key of another grant, are other calls.
	require.Empty(t, serve(h, g.keyed("k2", "/groups/42/messages?x=1", "hello \xff\n")).Header().Get("Idempotency-Replayed"))
	g.token = g.in(group42)
	require.Empty(t, serve(h, g.keyed("k1", "/groups/42/messages?x=1", "hello \xff\n")).Header().Get("Idempotency-Replayed"))
	require.Equal(t, 3, runs)
	require.Equal(t, 9, g.left(g.token))

	// Without the header, each is a call of its own.
	for range 2 {
		require.Equal(t, 201, serve(h, g.request("POST", "/groups/42/messages?x=1")).Code)
	}
	require.Equal(t, 5, runs)
	require.Equal(t, 7, g.left(g.token))
	require.NoError(t, g.Engine().Flush(t.Context()))
	entries, err := g.Engine().Ledger(t.Context(), "zhang-san", "", 100)
	require.NoError(t, err)
	for _, e := range entries {
		require.NotEqual(t, "refused", e.What, "a repeat is no refusal of the token")
	}
	require.Empty(t, g.log.String())
}

func TestIdempotencyKeyMalformed(t *testing.T) {
	g := newGuarded(t, group42)
	runs := 0
	h := g.require42(&runs, echo)
	for _, values := range [][]string{{""}, {`""`}, {`"a`}, {"a b"}, {`"a", "b"`}, {"a", "a"}, {"a", ""}, {strings.Repeat("k", 256)}, {"\x00"}, {"é"}, {`"a";b=1`}} {
		r := g.keyed("", "/", "hello")
		r.Header["Idempotency-Key"] = values
		rec := serve(h, r)
		require.Equal(t, 400, rec.Code, values)
		require.Contains(t, rec.Body.String(), `{"error":"invalid_request"`)
		require.Contains(t, rec.Body.String(), "Idempotency-Key")
	}
	// The body, as far as it goes.
	for _, row := range []struct {
		body   io.Reader
		status int
	}{
		{strings.NewReader(strings.Repeat("x", 1<<20+1)), 413},
		{endpointEndless{}, 413},
		{endpointBadReader{}, 400},
		{strings.NewReader(strings.Repeat("x", 1<<20)), 201},
	} {
		r := httptest.NewRequest("POST", "/", row.body)
		r.Header.Set("Authorization", "Bearer "+g.token)
		r.Header.Set("Idempotency-Key", "k")
		require.Equal(t, row.status, serve(h, r).Code)
	}
	r := g.keyed("n", "/", "")
	r.Body = nil
	require.Equal(t, 200, serve(g.Require("group:42/message.write")(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})), r).Code)
	require.Equal(t, 1, runs)
	require.Equal(t, 8, g.left(g.token))

	// A stranger makes nobody read a body, learns nothing of keys, and costs the store nothing.
	before := g.store.calls.Load()
	for _, token := range []string{"bhst_forged", forged(g.token)} {
		r := httptest.NewRequest("POST", "/", readNothing{t})
		r.Header.Set("Authorization", "Bearer "+token)
		r.Header["Idempotency-Key"] = []string{"", "?"}
		rec := serve(h, r)
		require.Equal(t, 401, rec.Code)
		require.Contains(t, rec.Body.String(), "the token is not valid")
	}
	require.Equal(t, before, g.store.calls.Load())
	require.Empty(t, g.log.String())
}

type readNothing struct{ t *testing.T }

func (r readNothing) Read([]byte) (int, error) { r.t.Error("read"); return 0, io.EOF }

// What is too large, taken over or broken off is not kept; a retry is told so, and never runs.
func TestIdempotencyKeyNotKept(t *testing.T) {
	for name, row := range map[string]struct {
		handler http.HandlerFunc
		kept    bool
	}{
		"64 KiB": {func(w http.ResponseWriter, _ *http.Request) {
			for range 64 {
				_, _ = io.WriteString(w, strings.Repeat("x", 1<<10))
			}
		}, true},
		"a byte more": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Long", "yes")
			w.WriteHeader(202)
			for range 64 {
				_, _ = io.WriteString(w, strings.Repeat("x", 1<<10))
			}
			_, _ = io.WriteString(w, "x")
		}, false},
		"much more": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, strings.Repeat("x", 1<<20)) }, false},
		"a long header": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Long", strings.Repeat("x", 9<<10))
			w.WriteHeader(201)
		}, false},
		"5xx": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "broken", 500) }, true},
		"4xx": {func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "no such text", http.StatusUnprocessableEntity)
		}, true},
		"nothing": {func(http.ResponseWriter, *http.Request) {}, true},
		"flushed": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "one")
			w.(http.Flusher).Flush()
			_, _ = io.WriteString(w, "two")
		}, true},
		"flushed, too large": {func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			for range 65 {
				_, _ = io.WriteString(w, strings.Repeat("x", 1<<10))
				w.(http.Flusher).Flush()
			}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuarded(t, group42)
			runs := 0
			handler := func(w http.ResponseWriter, r *http.Request) { // which nothing has to guess
				w.Header().Set("Content-Type", "text/plain")
				row.handler(w, r)
			}
			h := g.require42(&runs, handler)
			first := serve(h, g.keyed("k", "/", ""))
			plain := serve(g.Require("group:42/message.write")(http.HandlerFunc(handler)), g.request("POST", "/"))
			require.Equal(t, plain.Code, first.Code)
			require.Equal(t, plain.Body.String(), first.Body.String())
			require.Equal(t, plain.Result().Header, first.Result().Header)
			again := serve(h, g.keyed("k", "/", ""))
			if row.kept {
				require.Equal(t, first.Code, again.Code)
				require.Equal(t, first.Body.String(), again.Body.String())
				require.Equal(t, "true", again.Header().Get("Idempotency-Replayed"))
			} else {
				require.Equal(t, 409, again.Code)
				require.JSONEq(t, `{"error":"invalid_request","error_description":"the request was carried out before, and its answer is not kept","error_reason":"answer_not_kept"}`, again.Body.String())
				require.Empty(t, again.Header().Get("Retry-After"), "there is nothing to wait for")
			}
			require.Equal(t, 1, runs)
			require.Equal(t, 8, g.left(g.token))
			require.Empty(t, g.log.String())
		})
	}

	g := newGuarded(t, group42)
	runs := 0
	for n, then := range []any{"boom", http.ErrAbortHandler} {
		h := g.require42(&runs, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(201); panic(then) })
		key := fmt.Sprint("panic", n)
		require.PanicsWithValue(t, then, func() { serve(h, g.keyed(key, "/", "")) })
		require.Equal(t, "answer_not_kept", reasonOf(t, serve(h, g.keyed(key, "/", ""))))
		require.Equal(t, n+1, runs)
	}

	// The client has gone: what was answered is kept for its retry, silence is no answer.
	for n, say := range []bool{true, false} {
		ctx, cancel := context.WithCancel(t.Context())
		h := g.require42(&runs, func(w http.ResponseWriter, r *http.Request) {
			cancel()
			require.Error(t, r.Context().Err())
			if say {
				w.WriteHeader(201)
			}
		})
		key := fmt.Sprint("gone", n)
		serve(h, g.keyed(key, "/", "").WithContext(ctx))
		again := serve(h, g.keyed(key, "/", ""))
		if say {
			require.Equal(t, 201, again.Code)
		} else {
			require.Equal(t, "answer_not_kept", reasonOf(t, again))
		}
		require.Equal(t, n+3, runs)
	}
	require.Empty(t, g.log.String())
}

// While the first is under way, others are told to wait, and longer the longer it takes.
func TestIdempotencyKeyInFlight(t *testing.T) {
	clock := authztest.NewClock()
	g := newGuarded(t, group42, func(c *authz.Config) { c.Now = clock.Now })
	runs := 0
	var h http.Handler
	h = g.require42(&runs, func(w http.ResponseWriter, r *http.Request) {
		for wait, after := range map[time.Duration]string{0: "1", 900 * time.Millisecond: "1", 7 * time.Second: "7", 5 * time.Minute: "60"} {
			start := clock.Now()
			clock.Advance(wait)
			rec := serve(h, g.keyed("k", "/", "x"))
			require.Equal(t, 409, rec.Code)
			require.Equal(t, after, rec.Header().Get("Retry-After"))
			require.JSONEq(t, `{"error":"invalid_request","error_description":"a request with this Idempotency-Key is in flight, or its outcome is lost","error_reason":"key_in_flight"}`, rec.Body.String())
			require.Equal(t, 422, serve(h, g.keyed("k", "/", "y")).Code, "another request is told so at once")
			clock.Advance(start.Sub(clock.Now()))
		}
		echo(w, r)
	})
	require.Equal(t, 201, serve(h, g.keyed("k", "/", "x")).Code)
	require.Equal(t, "x", serve(h, g.keyed("k", "/", "x")).Body.String())
	require.Equal(t, 1, runs)
	require.Equal(t, 9, g.left(g.token))
}

// What may have changed since is asked again; only that it is used up does not matter.
func TestIdempotencyKeyLater(t *testing.T) {
	clock := authztest.NewClock()
	var permit error
	g := newGuarded(t, group42, func(c *authz.Config) {
		c.Now, c.Triggers[0].Uses = clock.Now, 1
		c.Permit = func(context.Context, grant.Access) error { return permit }
	})
	for name, options := range map[string][]authz.Option{"before": nil, "in the handler": {authz.SpendInHandler}} {
		t.Run(name, func(t *testing.T) {
			g.token = g.in(group42)
			runs := 0
			h := g.require42(&runs, func(w http.ResponseWriter, r *http.Request) {
				if d, _ := authz.FromContext(r.Context()); !d.Spent() {
					if err := d.Spend(r.Context(), nil); err != nil {
						authz.Refuse(w, r, err)
						return
					}
				}
				echo(w, r)
			}, options...)
			call := func(key string) *httptest.ResponseRecorder { return serve(h, g.keyed(key, "/", "x")) }
			require.Equal(t, 201, call("k").Code)
			require.Equal(t, "used_up", reasonOf(t, call("other")))
			again := call("k")
			require.Equal(t, 201, again.Code)
			require.Equal(t, "true", again.Header().Get("Idempotency-Replayed"))
			permit = grant.ErrDenied
			require.Equal(t, "rights_changed", reasonOf(t, call("k")))
			permit = nil
			d, err := g.Prepare(t.Context(), authz.Call{Token: g.token, Want: scope.MustParse("group:42/message.write")})
			require.NoError(t, err)
			start := clock.Now()
			clock.Advance(d.NotAfter.Sub(clock.Now()))
			require.Equal(t, "expired", reasonOf(t, call("k")))
			clock.Advance(start.Sub(clock.Now()))
			require.Equal(t, 201, call("k").Code)
			require.NoError(t, g.Engine().Revoke(t.Context(), "zhang-san", d.Grant))
			require.Equal(t, "revoked", reasonOf(t, call("k")))
			elsewhere := serve(g.Require("group:7/message.write")(http.HandlerFunc(echo)), g.keyed("k", "/", "x"))
			require.Equal(t, "wrong_domain", reasonOf(t, elsewhere))
			if options == nil {
				require.Equal(t, 1, runs)
			}
		})
	}
	require.Empty(t, g.log.String())
}

// P5: what was recorded for an app is not told while it, or the trigger, is suspended, nor after it was removed, though
// it is there again; nor is anything spent that was checked before.
func TestIdempotencyKeyChanged(t *testing.T) {
	for name, options := range map[string][]authz.Option{"before": nil, "in the handler": {authz.SpendInHandler}} {
		t.Run(name, func(t *testing.T) {
			var conf authz.Config
			g := newGuarded(t, group42, func(c *authz.Config) {
				c.Store = store.NewMemory() // which needs nobody to wait for a change
				conf = *c
			})
			change := func(c authz.Change) { require.NoError(t, g.Change(t.Context(), c)) }
			trigger := []string{"bookbot:mention:*"} // the ID that it has by itself
			runs, meanwhile := 0, func() {}
			h := g.require42(&runs, func(w http.ResponseWriter, r *http.Request) {
				if d, _ := authz.FromContext(r.Context()); !d.Spent() {
					meanwhile()
					if err := d.Spend(r.Context(), nil); err != nil {
						authz.Refuse(w, r, err)
						return
					}
				}
				echo(w, r)
			}, options...)
			call := func(key string) *httptest.ResponseRecorder { return serve(h, g.keyed(key, "/", "x")) }
			require.Equal(t, 201, call("k").Code)
			for _, c := range [][2]authz.Change{
				{{SuspendApps: []string{"bookbot"}}, {ResumeApps: []string{"bookbot"}}},
				{{SuspendTriggers: trigger}, {ResumeTriggers: trigger}},
				{{SuspendTriggers: trigger}, {Triggers: conf.Triggers}},
			} {
				change(c[0])
				if c[1].Triggers != nil {
					change(authz.Change{RemoveTriggers: trigger})
				}
				require.Equal(t, "revoked", reasonOf(t, call("k")))
				require.Equal(t, "revoked", reasonOf(t, call("new")))
				change(c[1])
				require.Equal(t, "true", call("k").Header().Get("Idempotency-Replayed"))
			}
			left := g.left(g.token)
			if options != nil {
				meanwhile = func() { change(authz.Change{SuspendApps: []string{"bookbot"}}) }
				require.Equal(t, "revoked", reasonOf(t, call("another")))
				meanwhile = func() {}
				change(authz.Change{ResumeApps: []string{"bookbot"}})
				require.Equal(t, left, g.left(g.token))
				require.Equal(t, 201, call("another").Code, "nothing is remembered of a call that was not carried out")
			}
			change(authz.Change{RemoveApps: []string{"bookbot"}})
			require.Equal(t, "revoked", reasonOf(t, call("k")))
			change(authz.Change{Apps: conf.Apps, Triggers: conf.Triggers})
			before := runs
			require.Equal(t, "revoked", reasonOf(t, call("k")))
			require.Equal(t, "revoked", reasonOf(t, call("new")))
			require.Equal(t, before, runs)
			g.token = g.in(group42)
			require.Empty(t, call("k").Header().Get("Idempotency-Replayed"))
		})
	}
}

// A store that fails in between leaves no way to run twice.
func TestIdempotencyKeyStoreFails(t *testing.T) {
	g := newGuarded(t, group42)
	runs := 0
	h := g.require42(&runs, func(w http.ResponseWriter, r *http.Request) {
		g.store.fail(errors.New("disk on fire"))
		echo(w, r)
	})
	g.store.fail(errors.New("disk on fire"))
	require.Equal(t, 503, serve(h, g.keyed("k", "/", "x")).Code)
	g.store.fail(nil)
	require.Zero(t, runs)
	require.Equal(t, 201, serve(h, g.keyed("k", "/", "x")).Code, "its answer is not recorded, and it is the answer")
	g.store.fail(nil)
	require.Contains(t, g.log.String(), "an answer was not recorded")
	require.Equal(t, "key_in_flight", reasonOf(t, serve(h, g.keyed("k", "/", "x"))))
	require.Equal(t, 1, runs)
	require.Equal(t, 9, g.left(g.token))

	// A damaged record is a 503, not a run.
	found, err := g.store.List(t.Context(), store.Query{Kind: "once"})
	require.NoError(t, err)
	require.Len(t, found, 1)
	for _, data := range []string{"{", `{"request":"x"}`} {
		r := found[0]
		r.Data, r.Version = []byte(data), store.AnyVersion
		_, err := g.store.Apply(t.Context(), time.Now(), []store.Op{store.Put(r)})
		require.NoError(t, err)
		require.Equal(t, 503, serve(h, g.keyed("k", "/", "x")).Code)
	}
	require.Contains(t, g.log.String(), "once "+found[0].ID)
	require.Equal(t, 1, runs)
}

// A leavingStore has a client leave while its write is under way: the write is there, and who asked hears of the end of
// its context.
type leavingStore struct {
	store.Store
	leave func()
}

func (s *leavingStore) Apply(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	out, err := s.Store.Apply(ctx, now, ops)
	if s.leave != nil {
		s.leave()
		if ctx.Err() != nil {
			return store.Outcome{}, ctx.Err()
		}
	}
	return out, err
}

// A client that leaves while its use is being spent is the one that asks again: it gets an answer.
func TestIdempotencyKeyClientLeaves(t *testing.T) {
	var s *leavingStore
	g := newGuarded(t, group42, func(c *authz.Config) {
		s = &leavingStore{Store: c.Store}
		c.Store = s
	})
	runs := 0
	h := g.require42(&runs, echo)
	ctx, cancel := context.WithCancel(t.Context())
	s.leave = cancel
	serve(h, g.keyed("k", "/", "x").WithContext(ctx))
	s.leave = nil
	again := serve(h, g.keyed("k", "/", "x"))
	require.Equal(t, 201, again.Code, "%s", again.Body)
	require.Equal(t, "true", again.Header().Get("Idempotency-Replayed"))
	require.Equal(t, 1, runs)
	require.Equal(t, 9, g.left(g.token))

	// Who has left before gets nothing, and the key is free.
	serve(h, g.keyed("before", "/", "x").WithContext(ctx))
	require.Equal(t, 1, runs)
	require.Equal(t, 9, g.left(g.token))
	require.Equal(t, 201, serve(h, g.keyed("before", "/", "x")).Code)
	require.Equal(t, 2, runs)
}

// RequireFunc's resolver and the handler read the same body, which is read once.
func TestIdempotencyKeyRequireFunc(t *testing.T) {
	g := newGuarded(t, group42)
	runs := 0
	h := g.RequireFunc(func(r *http.Request) (scope.Scope, error) {
		body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, 100))
		if err != nil || string(body) == "malformed" {
			return scope.Scope{}, fmt.Errorf("%w: the body", authz.ErrInvalidRequest)
		}
		r.Body = io.NopCloser(strings.NewReader("resolved " + string(body)))
		return scope.MustParse("group:42/thread:" + string(body) + "/message.write"), nil
	})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { runs++; echo(w, r) }))
	require.Equal(t, 400, serve(h, g.keyed("k", "/", "malformed")).Code)
	require.Equal(t, "resolved 1", serve(h, g.keyed("k", "/", "1")).Body.String(), "what was refused has not taken the key")
	require.Equal(t, "resolved 1", serve(h, g.keyed("k", "/", "1")).Body.String())
	require.Equal(t, 422, serve(h, g.keyed("k", "/", "2")).Code)
	require.Equal(t, 1, runs)
	require.Equal(t, 9, g.left(g.token))
}

// With SpendInHandler the key is part of the handler's transaction: what was not committed may be tried again.
func TestIdempotencyKeySpendInHandler(t *testing.T) {
	g := newGuarded(t, group42)
	runs := 0
	var fails bool
	h := g.require42(&runs, func(w http.ResponseWriter, r *http.Request) {
		d, _ := authz.FromContext(r.Context())
		if fails { // nothing was spent
			http.Error(w, "a conflict", http.StatusServiceUnavailable)
			return
		}
		if err := d.Spend(r.Context(), nil); err != nil {
			authz.Refuse(w, r, err)
			return
		}
		require.Equal(t, 409, serve(g.Require("group:42/message.write")(http.HandlerFunc(fine)), g.keyed("k", "/", "x")).Code)
		echo(w, r)
	}, authz.SpendInHandler)
	fails = true
	require.Equal(t, 503, serve(h, g.keyed("k", "/", "x")).Code)
	fails = false
	before := g.store.calls.Load()
	first := serve(h, g.keyed("k", "/", "x"))
	require.Equal(t, 201, first.Code)
	require.Equal(t, before+5, g.store.calls.Load(), "a look before, the use, the answer; and two of the test's own")
	require.Equal(t, 2, runs)
	require.Equal(t, first.Body.String(), serve(h, g.keyed("k", "/", "x")).Body.String())
	require.Equal(t, 422, serve(h, g.keyed("k", "/", "y")).Code)
	require.Equal(t, 2, runs, "what was answered needs no handler")
	require.Equal(t, 9, g.left(g.token))

	// Two that begin at once: the one that comes second to Spend is refused by it, and says what is known by then.
	var inner *httptest.ResponseRecorder
	h = g.require42(&runs, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Inner") == "" {
			r := g.keyed("race", "/", "x")
			r.Header.Set("X-Inner", "1")
			inner = serve(g.spendingEcho(), r)
		}
		g.spendingHandler(w, r)
	}, authz.SpendInHandler)
	outer := serve(h, g.keyed("race", "/", "x"))
	require.Equal(t, 201, inner.Code)
	require.Equal(t, 201, outer.Code)
	require.Equal(t, "true", outer.Header().Get("Idempotency-Replayed"))
	require.Equal(t, 8, g.left(g.token))

	// Refused after Spend: whether that was committed, the store knows.
	h = g.require42(&runs, func(w http.ResponseWriter, r *http.Request) {
		d, _ := authz.FromContext(r.Context())
		require.NoError(t, d.Spend(r.Context(), nil))
		authz.Refuse(w, r, errors.New("the answer to the commit was lost"))
	}, authz.SpendInHandler)
	require.Equal(t, 503, serve(h, g.keyed("lost", "/", "x")).Code)
	require.Equal(t, "answer_not_kept", reasonOf(t, serve(h, g.keyed("lost", "/", "x"))))
	require.Equal(t, 7, g.left(g.token))
}

func (g *guarded) spendingHandler(w http.ResponseWriter, r *http.Request) {
	d, _ := authz.FromContext(r.Context())
	if err := d.Spend(r.Context(), nil); err != nil {
		authz.Refuse(w, r, err)
		return
	}
	echo(w, r)
}

func (g *guarded) spendingEcho() http.Handler {
	return g.Require("group:42/message.write", authz.SpendInHandler)(http.HandlerFunc(g.spendingHandler))
}

// What a real server makes of it: lengths, trailers, HEAD, a flush on its way, and a connection that is taken over.
func TestIdempotencyKeyServer(t *testing.T) {
	g := newGuarded(t, group42)
	flushed := make(chan struct{})
	mux := http.NewServeMux()
	for pattern, f := range map[string]http.HandlerFunc{
		"GET /length": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "5")
			_, _ = io.WriteString(w, "hello")
		},
		"POST /empty": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) },
		"POST /trailer": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "X-Sum")
			_, _ = io.WriteString(w, "hello")
			w.Header().Set("X-Sum", "5")
			w.Header().Set(http.TrailerPrefix+"X-More", "6")
		},
		"POST /flush": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			_, _ = io.WriteString(w, "one\n")
			require.NoError(t, http.NewResponseController(w).Flush())
			<-flushed
			_, _ = io.WriteString(w, "two\n")
		},
		"POST /hijack": func(w http.ResponseWriter, _ *http.Request) {
			conn, rw, err := http.NewResponseController(w).Hijack()
			require.NoError(t, err)
			_, _ = rw.WriteString("HTTP/1.1 202 Mine\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
			_ = rw.Flush()
			_ = conn.Close()
		},
	} {
		mux.Handle(pattern, g.Require("group:42/message.write")(f))
	}
	web := httptest.NewServer(mux)
	defer web.Close()
	do := func(method, path string) *http.Response {
		r, err := http.NewRequest(method, web.URL+path, nil)
		require.NoError(t, err)
		r.Header.Set("Authorization", "Bearer "+g.token)
		r.Header.Set("Idempotency-Key", strconv.Quote(method+path))
		res, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		t.Cleanup(func() { _ = res.Body.Close() })
		return res
	}
	all := func(res *http.Response) string {
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return string(body)
	}
	for _, replayed := range []string{"", "true"} {
		for _, method := range []string{"GET", "HEAD"} {
			res := do(method, "/length")
			require.Equal(t, 200, res.StatusCode)
			require.Equal(t, int64(5), res.ContentLength)
			require.Equal(t, replayed, res.Header.Get("Idempotency-Replayed"))
			require.Equal(t, map[string]string{"GET": "hello", "HEAD": ""}[method], all(res))
		}
		res := do("POST", "/empty")
		require.Equal(t, 204, res.StatusCode)
		require.Equal(t, replayed, res.Header.Get("Idempotency-Replayed"))
		res = do("POST", "/trailer")
		require.Equal(t, "hello", all(res))
		if replayed == "" {
			require.Equal(t, http.Header{"X-Sum": {"5"}, "X-More": {"6"}}, res.Trailer)
		} else {
			require.Empty(t, res.Trailer, "trailers are not kept")
			require.Empty(t, res.Header.Get("X-Sum"))
		}
	}
	res := do("POST", "/flush")
	line, err := bufio.NewReader(io.LimitReader(res.Body, 4)).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "one\n", line)
	require.Equal(t, 409, do("POST", "/flush").StatusCode)
	close(flushed)
	require.Equal(t, "two\n", all(res))
	require.Equal(t, "one\ntwo\n", all(do("POST", "/flush")), "who has read it all can have it again")

	require.Equal(t, "202 Mine", do("POST", "/hijack").Status)
	require.Eventually(t, func() bool { return strings.Contains(all(do("POST", "/hijack")), "answer_not_kept") }, 10*time.Second, time.Millisecond)
	require.Equal(t, 10-6, g.left(g.token))
	require.Empty(t, g.log.String())
}
