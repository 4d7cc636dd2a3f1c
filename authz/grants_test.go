package authz_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/store"
)

// getGrants asks as an app: an empty secret means that app is a Bearer token.
func (w *endpointWorld) getGrants(ctx context.Context, query, app, secret string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", "/oauth2/grants"+query, nil).WithContext(ctx)
	if secret == "" {
		r.Header.Set("Authorization", "Bearer "+app)
	} else {
		r.Header.Set("Authorization", endpointBasic(app, secret))
	}
	return w.do(r)
}

// handed returns the IDs and codes of an answer.
func (w *endpointWorld) handed(rec *httptest.ResponseRecorder) map[string]string {
	w.t.Helper()
	require.Equal(w.t, http.StatusOK, rec.Code, rec.Body)
	require.Equal(w.t, "no-store", rec.Header().Get("Cache-Control"))
	var answer struct {
		Grants []struct{ ID, Code string } `json:"grants"`
	}
	require.NoError(w.t, json.Unmarshal(rec.Body.Bytes(), &answer))
	require.NotNil(w.t, answer.Grants, "an array, also when it is empty")
	out := map[string]string{}
	for _, g := range answer.Grants {
		out[g.ID] = g.Code
	}
	require.Len(w.t, out, len(answer.Grants))
	return out
}

func (w *endpointWorld) poll(query string) map[string]string {
	w.t.Helper()
	return w.handed(w.getGrants(context.Background(), query, "probe", endpointSecret))
}

func TestGrants(t *testing.T) {
	w := newEndpointWorld(t)
	require.Equal(t, "{\"grants\":[]}\n", w.getGrants(context.Background(), "", "probe", endpointSecret).Body.String())

	g := w.emit(grant.Mention, "probe")
	w.emit(grant.Mention, "other")
	rec := w.getGrants(context.Background(), "?wait=0", "probe", endpointSecret)
	require.Equal(t, http.StatusOK, rec.Code)
	require.JSONEq(t, fmt.Sprintf(`{"grants":[{"id":%q,"code":%q,"scope":"group:42/member.read group:42/message.write","redeem_by":"2026-03-01T12:01:00Z",
		"event":{"id":"m1","operation":"mention","account":%q,"domain":"group:42","text":"<b>hello & 你好</b>","data":{"k":"v"},"at":"2026-03-01T12:00:00Z"}}]}`,
		g.ID, g.Code.Reveal(), w.engine.Name("probe", "zhang-san")), rec.Body.String())
	require.NotContains(t, rec.Body.String(), "zhang-san")

	// Leased for 10 s, then there again, until it is redeemed.
	require.Empty(t, w.poll(""))
	w.advance(10*time.Second - time.Microsecond)
	require.Empty(t, w.poll(""))
	w.advance(time.Microsecond)
	again := w.poll("")
	require.Equal(t, map[string]string{g.ID: g.Code.Reveal()}, again)
	require.Equal(t, http.StatusOK, w.redeem(again[g.ID]).Code)
	w.advance(10 * time.Second)
	require.Empty(t, w.poll(""))

	t.Run("what is pushed can be polled too", func(t *testing.T) {
		polled, pushed := w.emit(grant.Mention, "probe"), w.emit(grant.Command, "")
		require.Equal(t, map[string]string{polled.ID: polled.Code.Reveal(), pushed.ID: pushed.Code.Reveal()}, w.poll(""))
	})
	t.Run("too late", func(t *testing.T) {
		w.emit(grant.Mention, "probe")
		w.advance(time.Minute)
		require.Empty(t, w.poll(""))
	})
	t.Run("revoked", func(t *testing.T) {
		g := w.emit(grant.Mention, "probe")
		require.NoError(t, w.engine.Revoke(context.Background(), "zhang-san", g.ID))
		require.Empty(t, w.poll(""))
	})
	t.Run("at most 100", func(t *testing.T) {
		for range 70 {
			w.emit(grant.Mention, "probe")
			w.emit(grant.Command, "")
		}
		first, second := w.poll(""), w.poll("")
		require.Len(t, first, 100)
		require.Len(t, second, 40)
	})
	t.Run("a resource server has none", func(t *testing.T) {
		require.Empty(t, w.handed(w.getGrants(context.Background(), "", "rs", "rs-secret")))
	})
	require.Empty(t, w.logged())
}

func TestGrantsBearer(t *testing.T) {
	w := newEndpointWorld(t)
	token := w.accessToken("probe", endpointSecret)
	g := w.emit(grant.Mention, "probe")
	w.emit(grant.Mention, "other")
	require.Equal(t, map[string]string{g.ID: g.Code.Reveal()}, w.handed(w.getGrants(context.Background(), "", token, "")))
	revoked := w.accessToken("probe", endpointSecret)
	w.revoke("probe", endpointSecret, revoked)
	delegation := w.token("probe")
	refused := func(token string) {
		rec := w.getGrants(context.Background(), "", token, "")
		endpointRefused(t, rec, 401, "invalid_token")
		require.Equal(t, []string{`Bearer realm="behest", error="invalid_token"`, `Basic realm="behest", charset="UTF-8"`}, rec.Header().Values("WWW-Authenticate"))
	}
	for _, text := range []string{revoked, delegation, w.code("probe"), "x", "", "bhat_", "bhat_" + strings.Repeat("A", 43), token + "A", token + " x", "bhat_" + strings.Repeat("A", 60000), "\xff"} {
		refused(text)
	}
	require.NoError(t, w.use(delegation), "and nothing was spent")
	w.advance(10 * time.Minute)
	refused(token)

	cause := errors.New("disk on fire")
	w.store.failGet.Store(&cause)
	endpointRefused(t, w.getGrants(context.Background(), "", token, ""), 503, "temporarily_unavailable")
	refused("bhat_short")
}

func TestGrantsMalformed(t *testing.T) {
	w := newEndpointWorld(t)
	g := w.emit(grant.Mention, "probe")
	auth := endpointBasic("probe", endpointSecret)
	for _, method := range []string{"POST", "HEAD", "PUT", "DELETE", "OPTIONS", "BREW"} {
		rec := w.do(endpointRequest(method, "/oauth2/grants", "", "Authorization", auth))
		endpointRefused(t, rec, 405, "invalid_request")
		require.Equal(t, "GET", rec.Header().Get("Allow"))
	}
	for _, query := range []string{
		"wait=", "wait", "wait=x", "wait=-1", "wait=-1s", "wait=31", "wait=31s", "wait=30.001s", "wait=1h", "wait=1e1", "wait=5.5", "wait=0x5", "wait=5+s", "wait=+5", "wait=5S",
		"wait=99999999999999999999", "wait=9999999999h", "wait=NaN", "wait=Inf", "wait=%35%00", "wait=%ff", "wait=%zz", "wait=5;", "wait=５",
		"wait=1&wait=1", "wait=1&Wait=1", "x=1", "x", "=1", "wait=1&x=1", "client_id=probe&client_secret=x", "access_token=x", "wait=" + strings.Repeat("1", 100000),
	} {
		r := httptest.NewRequest("GET", "/oauth2/grants", nil)
		r.URL.RawQuery = query
		r.Header.Set("Authorization", auth)
		endpointRefused(t, w.do(r), 400, "invalid_request")
	}
	withBody := endpointRequest("GET", "/oauth2/grants", "wait=1", "Authorization", auth)
	endpointRefused(t, w.do(withBody), 400, "invalid_request")
	chunked := endpointRequest("GET", "/oauth2/grants", "", "Authorization", auth)
	chunked.Body, chunked.ContentLength = io.NopCloser(strings.NewReader("x")), -1
	endpointRefused(t, w.do(chunked), 400, "invalid_request")
	twice := endpointRequest("GET", "/oauth2/grants", "", "Authorization", auth, "Authorization", "Bearer x")
	endpointRefused(t, w.do(twice), 400, "invalid_request")

	for name, header := range map[string]string{"none": "-", "empty": "", "unknown": endpointBasic("nobody", "x"), "wrong": endpointBasic("probe", "x"), "malformed": "Basic !", "another scheme": "Digest x", "Bearer alone": "Bearer"} {
		r := httptest.NewRequest("GET", "/oauth2/grants", nil)
		if header != "-" {
			r.Header.Set("Authorization", header)
		}
		rec := w.do(r)
		endpointRefused(t, rec, 401, "invalid_client")
		require.Equal(t, []string{`Basic realm="behest", charset="UTF-8"`, `Bearer realm="behest"`}, rec.Header().Values("WWW-Authenticate"), name)
	}
	require.Equal(t, map[string]string{g.ID: g.Code.Reveal()}, w.poll(""), "nothing was leased by what was refused")
	require.Empty(t, w.logged())
}

func TestGrantsWait(t *testing.T) {
	bubble := func(name string, f func(t *testing.T, w *endpointWorld)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newEndpointWorld(t)
				w.start = time.Now // the bubble's
				f(t, w)
			})
		})
	}
	for query, want := range map[string]time.Duration{"": 0, "?wait=0": 0, "?wait=0s": 0, "?wait=5": 5 * time.Second, "?wait=5s": 5 * time.Second, "?wait=1500ms": 1500 * time.Millisecond,
		"?wait=30": 30 * time.Second, "?wait=0.5m": 30 * time.Second, "?wait=1ns": 1} {
		bubble("in vain "+query, func(t *testing.T, w *endpointWorld) {
			began := time.Now()
			require.Empty(t, w.poll(query))
			require.Equal(t, want, time.Since(began))
		})
	}
	bubble("what is there is told at once", func(t *testing.T, w *endpointWorld) {
		w.emit(grant.Mention, "probe")
		began := time.Now()
		require.Len(t, w.poll("?wait=30"), 1)
		require.Zero(t, time.Since(began))
	})
	bubble("what comes is found by looking", func(t *testing.T, w *endpointWorld) {
		time.AfterFunc(3100*time.Millisecond, func() { w.emit(grant.Mention, "probe") })
		began := time.Now()
		require.Len(t, w.poll("?wait=30"), 1)
		require.Equal(t, 3250*time.Millisecond, time.Since(began))
	})
	bubble("what comes is told by Wait", func(t *testing.T, w *endpointWorld) {
		news := make(chan struct{})
		w.news.Store(&news)
		time.AfterFunc(3100*time.Millisecond, func() {
			w.emit(grant.Mention, "probe")
			next := make(chan struct{})
			w.news.Store(&next)
			close(news)
		})
		began := time.Now()
		require.Len(t, w.poll("?wait=30"), 1)
		require.Equal(t, 3100*time.Millisecond, time.Since(began))
	})
	bubble("news for others change nothing", func(t *testing.T, w *endpointWorld) {
		time.AfterFunc(time.Second, func() { w.emit(grant.Mention, "other") })
		began := time.Now()
		require.Empty(t, w.poll("?wait=2"))
		require.Equal(t, 2*time.Second, time.Since(began))
	})
	bubble("a lease that ends is seen", func(t *testing.T, w *endpointWorld) {
		w.emit(grant.Mention, "probe")
		require.Len(t, w.poll(""), 1)
		began := time.Now()
		require.Len(t, w.poll("?wait=30"), 1)
		require.Equal(t, 10*time.Second, time.Since(began))
	})
	bubble("the client goes away", func(t *testing.T, w *endpointWorld) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		began := time.Now()
		rec := w.getGrants(ctx, "?wait=30", "probe", endpointSecret)
		require.Equal(t, time.Second, time.Since(began))
		require.Zero(t, rec.Body.Len())
		require.Empty(t, w.logged())
		w.emit(grant.Mention, "probe")
		require.Len(t, w.poll(""), 1)
	})
	bubble("the host lets nobody wait so long", func(t *testing.T, w *endpointWorld) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		rec := w.getGrants(ctx, "?wait=30", "probe", endpointSecret)
		require.Equal(t, 200, rec.Code)
		require.Equal(t, "{\"grants\":[]}\n", rec.Body.String())
		require.Empty(t, w.logged())
		endpointRefused(t, w.getGrants(ctx, "?wait=30", "probe", endpointSecret), 503, "temporarily_unavailable") // it is over before it begins
		require.Contains(t, w.logged(), "deadline exceeded")
	})
	bubble("the store begins to fail", func(t *testing.T, w *endpointWorld) {
		cause := errors.New("disk on fire")
		time.AfterFunc(time.Second+time.Millisecond, func() { w.store.failClaim.Store(&cause) })
		began := time.Now()
		endpointRefused(t, w.getGrants(t.Context(), "?wait=30", "probe", endpointSecret), 503, "temporarily_unavailable")
		require.Equal(t, 1250*time.Millisecond, time.Since(began))
		require.Contains(t, w.logged(), "disk on fire")
	})
	bubble("two wait, each grant goes to one", func(t *testing.T, w *endpointWorld) {
		time.AfterFunc(time.Second, func() {
			for range 20 {
				w.emit(grant.Mention, "probe")
			}
		})
		var wg sync.WaitGroup
		var mu sync.Mutex
		total, seen := 0, map[string]bool{}
		for range 8 {
			wg.Go(func() {
				got := w.poll("?wait=5")
				mu.Lock()
				defer mu.Unlock()
				for id := range got {
					total++
					seen[id] = true
				}
			})
		}
		wg.Wait()
		require.Equal(t, 20, total)
		require.Len(t, seen, 20)
	})
}

// The deadlines of an http.Server are shorter than a long poll.
func TestGrantsDeadlines(t *testing.T) {
	w := newEndpointWorld(t)
	srv := httptest.NewUnstartedServer(w.mux)
	srv.Config.ReadTimeout, srv.Config.WriteTimeout = 200*time.Millisecond, 200*time.Millisecond
	srv.Start()
	defer srv.Close()
	req, err := http.NewRequest("GET", srv.URL+"/oauth2/grants?wait=700ms", nil)
	require.NoError(t, err)
	req.SetBasicAuth("probe", url.QueryEscape(endpointSecret))
	resp, err := srv.Client().Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, "{\"grants\":[]}\n", string(body))
}

// A damaged record keeps nobody from the others.
func TestGrantsDamaged(t *testing.T) {
	damage := func(w *endpointWorld, kind, grant string) {
		found, err := w.mem.List(context.Background(), store.Query{Kind: kind, Limit: store.MaxPage})
		require.NoError(w.t, err)
		for _, r := range found {
			if strings.HasSuffix(r.ID, "."+grant) {
				r.Data = []byte("{")
				out, err := w.mem.Apply(context.Background(), w.now(), []store.Op{store.Put(r)})
				require.NoError(w.t, err)
				require.True(w.t, out.Applied())
				return
			}
		}
		w.t.Fatal("no such record")
	}
	for _, kind := range []string{"grant", "poll"} {
		t.Run(kind, func(t *testing.T) {
			w := newEndpointWorld(t)
			damage(w, kind, w.emit(grant.Mention, "probe").ID)
			good, pushed := w.emit(grant.Mention, "probe"), w.emit(grant.Command, "")
			require.Equal(t, map[string]string{good.ID: good.Code.Reveal(), pushed.ID: pushed.Code.Reveal()}, w.poll(""))
			require.Contains(t, w.logged(), "claiming grants")
		})
		t.Run(kind+" alone", func(t *testing.T) {
			w := newEndpointWorld(t)
			damage(w, kind, w.emit(grant.Mention, "probe").ID)
			require.Empty(t, w.poll(""))
			require.Contains(t, w.logged(), "claiming grants")
		})
		t.Run(kind+" in front of more than one answer holds", func(t *testing.T) {
			w := newEndpointWorld(t)
			for range 100 {
				damage(w, kind, w.emit(grant.Mention, "probe").ID)
			}
			w.advance(time.Second)
			good := w.emit(grant.Mention, "probe")
			require.Equal(t, map[string]string{good.ID: good.Code.Reveal()}, w.poll(""))
		})
	}
}

func TestGrantsStoreFails(t *testing.T) {
	w := newEndpointWorld(t)
	g := w.emit(grant.Mention, "probe")
	var cause error = endpointUnhashable{"disk"}
	w.store.failClaim.Store(&cause)
	rec := w.getGrants(context.Background(), "", "probe", endpointSecret)
	endpointRefused(t, rec, 503, "temporarily_unavailable")
	require.NotContains(t, rec.Body.String(), "disk")
	w.store.failClaim.Store(nil)
	require.Equal(t, map[string]string{g.ID: g.Code.Reveal()}, w.poll(""))
}

// Without a store there are no Bearer tokens, and nothing else is missing.
func TestGrantsWithoutStore(t *testing.T) {
	w := newEndpointWorld(t)
	var logs bytes.Buffer
	e := &authz.GrantsEndpoint{Engine: w.engine, Clients: w.clients, Log: slog.New(slog.NewTextHandler(&logs, nil))}
	for header, status := range map[string]int{"Bearer " + w.accessToken("probe", endpointSecret): 401, endpointBasic("probe", endpointSecret): 200} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Authorization", header)
		rec := httptest.NewRecorder()
		e.ServeHTTP(rec, r)
		require.Equal(t, status, rec.Code)
	}
	require.Empty(t, logs.String())
}
