package authz_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// emitting makes a server whose bookbot gets a grant at each mention, and what says how many there are.
func emitting(t *testing.T, change ...func(*authz.Config)) (az *authz.Server, count func() int) {
	t.Helper()
	servers, _ := bubble(t, 1, change...)
	return servers[0], func() int {
		t.Helper()
		grants, err := servers[0].Engine().Grants(t.Context(), "zhang-san", "", true)
		require.NoError(t, err)
		return len(grants)
	}
}

func TestEmitLink(t *testing.T) {
	const issuer = "https://social.example/s"
	az, _ := emitting(t, func(c *authz.Config) {
		c.Issuer = issuer
		c.Apps[0].RedirectURIs = []string{"https://bookbot.example/cb?keep=a%20b;c&keep=2", "https://bookbot.example/second", "http://localhost:8080"}
		c.Apps[0].RedirectURIs[0] = "https://bookbot.example/cb?keep=a%20b&keep=2&z"
		c.Triggers = append(c.Triggers, grant.Trigger{App: "bookbot", On: grant.LinkOpen, In: "*", Allow: []string{"message.write"}},
			grant.Trigger{App: "bookbot", On: grant.ButtonPress, In: "*", Allow: []string{"message.write"}, Deliver: grant.Redirect, Consent: grant.Always})
	})
	link := func(id, target string) string {
		issued, err := az.Emit(t.Context(), grant.Event{ID: id, Operation: grant.LinkOpen, Account: "zhang-san", App: "bookbot", Domain: scope.MustDomain("group:42"), Target: target})
		require.NoError(t, err)
		require.Len(t, issued, 1)
		u, err := url.Parse(issued[0].Link())
		require.NoError(t, err)
		require.Equal(t, issuer, u.Query().Get("iss"))
		require.Equal(t, issued[0].Code.Reveal(), u.Query().Get("code"))
		before, _, _ := strings.Cut(issued[0].Link(), "code=")
		return before
	}
	require.Equal(t, "https://bookbot.example/cb?keep=a%20b&keep=2&z&", link("1", ""))
	require.Equal(t, "https://bookbot.example/cb?keep=a%20b&keep=2&z&", link("2", "https://evil.example/"), "the target is a choice among the app's own, and nothing else")
	require.Equal(t, "https://bookbot.example/second?", link("3", "https://bookbot.example/second"))
	require.Equal(t, "http://localhost:8080?", link("4", "http://localhost:8080"))
	require.Equal(t, "https://bookbot.example/cb?keep=a%20b&keep=2&z&", link("5", "https://bookbot.example/second/"))

	// No link for a poll, and none before the answer of a pending grant, nor after its code has gone.
	issued, err := az.Emit(t.Context(), bubbleMention("6"))
	require.NoError(t, err)
	require.Empty(t, issued[0].Link())
	press := grant.Event{ID: "7", Operation: grant.ButtonPress, Account: "zhang-san", App: "bookbot", Domain: scope.MustDomain("group:42"), Target: "buy"}
	issued, err = az.Emit(t.Context(), press)
	require.NoError(t, err)
	require.Equal(t, "pending", issued[0].State)
	require.Empty(t, issued[0].Link())
	_, err = az.Decide(t.Context(), "li-si", issued[0].ID, true)
	require.ErrorIs(t, err, grant.ErrUnknown)
	decided, err := az.Decide(t.Context(), "zhang-san", issued[0].ID, true)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(decided.Link(), "https://bookbot.example/cb?"), decided.Link())
	require.NotContains(t, authz.Issued{}.Link(), "code")
	_, _, err = az.Engine().Redeem(t.Context(), "bookbot", decided.Code)
	require.NoError(t, err)
	issued, err = az.Emit(t.Context(), press)
	require.NoError(t, err)
	require.Equal(t, "redeemed", issued[0].State)
	require.Empty(t, issued[0].Link())
}

func TestEmitBatch(t *testing.T) {
	az, count := emitting(t)
	bad := bubbleMention("")
	issued, err := az.Emit(t.Context(), bubbleMention("1"), bad, bubbleMention("2"), grant.Event{}, bubbleMention("1"))
	require.ErrorIs(t, err, grant.ErrInvalid)
	require.Len(t, issued, 3, "what could be issued is returned beside the error")
	require.Equal(t, issued[0].ID, issued[2].ID)
	require.Equal(t, 2, count())
	issued, err = az.Emit(t.Context())
	require.NoError(t, err)
	require.Empty(t, issued)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	issued, err = az.Emit(cancelled, bubbleMention("3"))
	require.ErrorIs(t, err, context.Canceled)
	require.Empty(t, issued)
	require.Equal(t, 2, count())
}

// In the caller's transaction: nobody hears of it before Wake.
func TestEmitInAnotherStore(t *testing.T) {
	az, count := emitting(t)
	tx := &spyStore{Store: store.NewMemory()}
	issued, err := az.In(tx).Emit(t.Context(), bubbleMention("1"))
	require.NoError(t, err)
	require.Len(t, issued, 1)
	require.NotZero(t, tx.applies.Load())
	require.Zero(t, count())
	_, token, err := az.In(tx).Engine().Redeem(t.Context(), "bookbot", issued[0].Code)
	require.NoError(t, err)
	want := scope.MustParse("group:42/message.write")
	_, err = az.In(tx).Use(t.Context(), authz.Call{Token: token.Reveal(), Want: want})
	require.NoError(t, err)
	_, err = az.Use(t.Context(), authz.Call{Token: token.Reveal(), Want: want})
	require.ErrorIs(t, err, grant.ErrUnknown, "not in that store")
	h := az.In(tx).Require("group:42/message.write")(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	r := httptest.NewRequest("POST", "/", nil)
	r.Header.Set("Authorization", "bearer "+token.Reveal())
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	require.Equal(t, 200, rec.Code)
}

// did is a handler that notes a mention, checks what Did says, and goes on with then.
func did(t *testing.T, id string, want bool, then func(http.ResponseWriter, *http.Request)) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if got := authz.Did(r.Context(), bubbleMention(id)); got != want {
			t.Errorf("Did says %v", got)
		}
		if then != nil {
			then(rw, r)
		}
	})
}

func TestMonitorStatus(t *testing.T) {
	for name, row := range map[string]struct {
		emits bool
		then  func(http.ResponseWriter, *http.Request)
	}{
		"nothing":     {true, nil},
		"200":         {true, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(200) }},
		"201":         {true, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(201) }},
		"204":         {true, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(204) }},
		"299":         {true, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(299) }},
		"body":        {true, func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "hi") }},
		"copied body": {true, func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.Copy(rw, strings.NewReader("hi")) }},
		"an early hint, then 200": {true, func(rw http.ResponseWriter, _ *http.Request) {
			rw.WriteHeader(103)
			rw.WriteHeader(200)
		}},
		"an early hint, then 400": {false, func(rw http.ResponseWriter, _ *http.Request) {
			rw.WriteHeader(103)
			rw.WriteHeader(400)
		}},
		"body, and a status too late": {true, func(rw http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(rw, "hi")
			rw.WriteHeader(500)
		}},
		"flush, and a status too late": {true, func(rw http.ResponseWriter, _ *http.Request) {
			rw.(http.Flusher).Flush()
			rw.WriteHeader(500)
		}},
		"error, and a status too late": {false, func(rw http.ResponseWriter, _ *http.Request) {
			http.Error(rw, "no", http.StatusUnprocessableEntity)
			rw.WriteHeader(200)
		}},
		"302": {false, func(rw http.ResponseWriter, r *http.Request) { http.Redirect(rw, r, "/", http.StatusFound) }},
		"304": {false, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(304) }},
		"400": {false, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(400) }},
		"409": {false, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(409) }},
		"500": {false, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(500) }},
		"999": {false, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(999) }},
		"101": {false, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(101) }},
		"taken over": {false, func(rw http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(rw).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			_ = conn.Close()
		}},
		"taken over in the old way": {false, func(rw http.ResponseWriter, _ *http.Request) {
			conn, _, err := rw.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			_ = conn.Close()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			az, count := emitting(t)
			// A real server: what the handler did is what net/http makes of it.
			web := httptest.NewUnstartedServer(az.Monitor(did(t, "m1", true, row.then)))
			web.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // superfluous WriteHeader
			web.Start()
			defer web.Close()
			client := &http.Client{Transport: &http.Transport{}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
			defer client.CloseIdleConnections()
			res, err := client.Post(web.URL, "text/plain", nil)
			if err == nil {
				_ = res.Body.Close()
			}
			web.Close() // waits for the handler
			want := 0
			if row.emits {
				want = 1
			}
			require.Equal(t, want, count())
			if err == nil && name != "taken over" && name != "taken over in the old way" {
				require.Equal(t, row.emits, res.StatusCode/100 == 2, "the client saw %d", res.StatusCode)
			}
		})
	}
}

func TestMonitorDeliberate(t *testing.T) {
	for _, row := range []struct {
		method, header, value string
		emits                 bool
	}{
		{"POST", "", "", true},
		{"PUT", "", "", true},
		{"PATCH", "", "", true},
		{"DELETE", "", "", true},
		{"POST", "Sec-Fetch-Mode", "navigate", true},
		{"POST", "Purpose", "fun", true},
		{"GET", "", "", false},
		{"HEAD", "", "", false},
		{"OPTIONS", "", "", false},
		{"TRACE", "", "", false},
		{"POST", "Sec-Purpose", "prefetch", false},
		{"POST", "Sec-Purpose", "prefetch;prerender", false},
		{"POST", "Sec-Purpose", "Prefetch; anonymous-client-ip", false},
		{"POST", "Purpose", "prefetch", false},
		{"POST", "X-Purpose", "preview", false},
		{"POST", "X-Moz", "prefetch", false},
	} {
		t.Run(row.method+row.header+row.value, func(t *testing.T) {
			az, count := emitting(t)
			r := httptest.NewRequest(row.method, "/", nil)
			if row.header != "" {
				r.Header.Add(row.header, "")
				r.Header.Add(row.header, row.value)
			}
			az.Monitor(did(t, "m1", row.emits, nil)).ServeHTTP(httptest.NewRecorder(), r)
			require.Equal(t, row.emits, count() == 1)
		})
	}
}

func TestMonitorEnds(t *testing.T) {
	t.Run("panic", func(t *testing.T) {
		az, count := emitting(t)
		var kept context.Context
		require.PanicsWithValue(t, "boom", func() {
			az.Monitor(did(t, "m1", true, func(rw http.ResponseWriter, r *http.Request) {
				kept = r.Context()
				rw.WriteHeader(200)
				panic("boom")
			})).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/", nil))
		})
		require.Zero(t, count())
		require.False(t, authz.Did(kept, bubbleMention("m2")), "nobody will emit it")
	})
	t.Run("the client has gone", func(t *testing.T) {
		az, count := emitting(t)
		ctx, cancel := context.WithCancel(t.Context())
		r := httptest.NewRequest("POST", "/", nil).WithContext(ctx)
		az.Monitor(did(t, "m1", true, func(http.ResponseWriter, *http.Request) { cancel() })).ServeHTTP(httptest.NewRecorder(), r)
		require.Equal(t, 1, count(), "the message is saved, so the mention happened")
	})
	t.Run("outside, and after the handler has returned", func(t *testing.T) {
		az, count := emitting(t)
		require.False(t, authz.Did(t.Context(), bubbleMention("m1")))
		var kept context.Context
		az.Monitor(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { kept = r.Context() })).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/", nil))
		require.False(t, authz.Did(kept, bubbleMention("m2")))
		require.Zero(t, count())
	})
	t.Run("several at once", func(t *testing.T) {
		az, count := emitting(t)
		az.Monitor(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			var wg sync.WaitGroup
			for i := range 64 {
				wg.Go(func() { authz.Did(r.Context(), bubbleMention(string(rune('A'+i)))) })
			}
			wg.Wait()
		})).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/", nil))
		require.Equal(t, 64, count())
	})
	t.Run("errors go to the log", func(t *testing.T) {
		var log bytes.Buffer
		az, count := emitting(t, func(c *authz.Config) {
			c.Log = slog.New(slog.NewTextHandler(&log, nil))
			c.Permit = func(context.Context, grant.Access) error { return errors.New("disk on fire") }
		})
		rec := httptest.NewRecorder()
		az.Monitor(did(t, "m1", true, nil)).ServeHTTP(rec, httptest.NewRequest("POST", "/", nil))
		require.Equal(t, 200, rec.Code)
		require.Zero(t, count())
		require.Contains(t, log.String(), "disk on fire")
	})
	t.Run("nested", func(t *testing.T) {
		az, count := emitting(t)
		az.Monitor(az.Monitor(did(t, "m1", true, nil))).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/", nil))
		require.Equal(t, 1, count())
	})
}

// P7 by middleware: whichever is outside, what a delegation does triggers nothing.
func TestMonitorOfDelegations(t *testing.T) {
	az, count := emitting(t, func(c *authz.Config) { c.Triggers[0].Uses = 10 })
	issued, err := az.Emit(t.Context(), bubbleMention("first"))
	require.NoError(t, err)
	_, token, err := az.Engine().Redeem(t.Context(), "bookbot", issued[0].Code)
	require.NoError(t, err)
	guard := az.Require("group:42/message.write")
	kinds := map[string]http.Handler{
		"Monitor(Require)": az.Monitor(guard(did(t, "m1", true, nil))),
		"Require(Monitor)": guard(az.Monitor(did(t, "m2", true, nil))),
		"Emit": guard(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if issued, err := az.Emit(r.Context(), bubbleMention("m3")); err != nil || issued != nil {
				t.Error(issued, err)
			}
		})),
	}
	for name, h := range kinds {
		r := httptest.NewRequest("POST", "/", nil)
		r.Header.Set("Authorization", "Bearer "+token.Reveal())
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		require.Equal(t, 200, rec.Code, name)
		require.Equal(t, 1, count(), name)
	}
}

// What a handler can do with its ResponseWriter, it can do under Monitor.
func TestMonitorResponseController(t *testing.T) {
	az, _ := emitting(t)
	flushed := make(chan struct{})
	web := httptest.NewServer(az.Monitor(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		c := http.NewResponseController(rw)
		for _, err := range []error{c.SetReadDeadline(time.Now().Add(time.Hour)), c.SetWriteDeadline(time.Now().Add(time.Hour)), c.EnableFullDuplex()} {
			if err != nil {
				t.Error(err)
			}
		}
		_, _ = io.WriteString(rw, "one\n")
		if err := c.Flush(); err != nil {
			t.Error(err)
		}
		<-flushed // the client has seen the first line before the handler ends
		_, _ = io.WriteString(rw, "two\n")
	})))
	defer web.Close()
	res, err := http.Post(web.URL, "text/plain", nil)
	require.NoError(t, err)
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	require.True(t, lines.Scan())
	require.Equal(t, "one", lines.Text())
	close(flushed)
	require.True(t, lines.Scan())

	// And what it cannot, it is told.
	az.Monitor(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		c := http.NewResponseController(rw)
		if err := c.Flush(); !errors.Is(err, http.ErrNotSupported) {
			t.Error(err)
		}
		if _, _, err := c.Hijack(); !errors.Is(err, http.ErrNotSupported) {
			t.Error(err)
		}
	})).ServeHTTP(&plainWriter{header: http.Header{}}, httptest.NewRequest("POST", "/", nil))
}

// A plainWriter is a ResponseWriter and no more.
type plainWriter struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (w *plainWriter) Header() http.Header         { return w.header }
func (w *plainWriter) WriteHeader(status int)      { w.status = status }
func (w *plainWriter) Write(b []byte) (int, error) { return w.body.Write(b) }
