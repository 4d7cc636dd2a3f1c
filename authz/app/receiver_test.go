package app_test

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
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz/app"
	"github.com/behest-go/behest/authz/webhook"
	"github.com/behest-go/behest/scope"
)

var (
	epoch = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	quiet = slog.New(slog.DiscardHandler)
)

const grantJSON = `{"id":"g1","code":"bhsc_topsecret","scope":"group:42/message.write","redeem_by":"2026-06-01T12:01:00Z",` +
	`"event":{"id":"m1","operation":"mention","account":"pw-zhang","domain":"group:42","text":"@bookbot hi","data":{"k":"v"},"at":"2026-06-01T12:00:00Z"}}`

func issued(grant string) []byte {
	return []byte(`{"type":"grant.issued","timestamp":"2026-06-01T12:00:00Z","data":` + grant + `}`)
}

// delivery is a signed request as the server makes it.
func delivery(t testing.TB, id string, at time.Time, body []byte, keys ...webhook.Key) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/hook", bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	require.NoError(t, webhook.Sign(r.Header, id, at, body, keys...))
	return r
}

func serve(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestReceiverHandsOverTheGrant(t *testing.T) {
	key := webhook.NewSecret()
	var got app.Grant
	rc := &app.Receiver{Keys: []webhook.Key{key}, Log: quiet, Now: func() time.Time { return epoch },
		Handle: func(_ context.Context, g app.Grant) error { got = g; return nil }}
	w := serve(rc, delivery(t, "msg_1", epoch, issued(grantJSON), key))
	require.Equal(t, 204, w.Code)
	require.Empty(t, w.Body.String())
	require.Equal(t, "g1", got.ID)
	require.Equal(t, "bhsc_topsecret", got.Code.Reveal())
	require.Equal(t, "group:42/message.write", got.Scope.String())
	require.Equal(t, epoch.Add(time.Minute), got.RedeemBy.UTC())
	require.Equal(t, app.Event{ID: "m1", Operation: "mention", Account: "pw-zhang", Domain: scope.MustDomain("group:42"),
		Text: "@bookbot hi", Data: map[string]string{"k": "v"}, At: epoch}, got.Event)
}

func TestReceiverAnswers(t *testing.T) {
	key, old, stranger := webhook.NewSecret(), webhook.NewSigningKey(), webhook.NewSecret()
	good := issued(grantJSON)
	big := issued(`{"id":"g1","code":"c","pad":"` + strings.Repeat("x", 256<<10) + `"}`)
	for _, c := range []struct {
		name    string
		request func() *http.Request
		status  int
		handled bool
	}{
		{"good", func() *http.Request { return delivery(t, "m", epoch, good, key) }, 204, true},
		{"good, by the other key", func() *http.Request { return delivery(t, "m", epoch, good, old) }, 204, true},
		{"good, by both", func() *http.Request { return delivery(t, "m", epoch, good, old, key) }, 204, true},
		{"good, one key unknown", func() *http.Request { return delivery(t, "m", epoch, good, stranger, key) }, 204, true},
		{"good, with a charset", func() *http.Request {
			r := delivery(t, "m", epoch, good, key)
			r.Header.Set("Content-Type", "Application/JSON; charset=utf-8")
			return r
		}, 204, true},
		{"good, fields we do not know", func() *http.Request {
			return delivery(t, "m", epoch, []byte(`{"new":1,"type":"grant.issued","data":{"new":[],"id":"g","code":"c"}}`), key)
		}, 204, true},
		{"another type", func() *http.Request {
			return delivery(t, "m", epoch, []byte(`{"type":"grant.shelved","data":[1]}`), key)
		}, 204, false},
		{"GET", func() *http.Request { return httptest.NewRequest(http.MethodGet, "/", nil) }, 405, false},
		{"HEAD", func() *http.Request { return httptest.NewRequest(http.MethodHead, "/", nil) }, 405, false},
		{"PUT", func() *http.Request {
			r := delivery(t, "m", epoch, good, key)
			r.Method = http.MethodPut
			return r
		}, 405, false},
		{"no content type", func() *http.Request {
			r := delivery(t, "m", epoch, good, key)
			r.Header.Del("Content-Type")
			return r
		}, 415, false},
		{"a form", func() *http.Request {
			r := delivery(t, "m", epoch, good, key)
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			return r
		}, 415, false},
		{"too large", func() *http.Request { return delivery(t, "m", epoch, big, key) }, 413, false},
		{"too large, unannounced", func() *http.Request {
			r := delivery(t, "m", epoch, big, key)
			r.ContentLength = -1
			return r
		}, 413, false},
		{"cut off", func() *http.Request {
			r := delivery(t, "m", epoch, good, key)
			r.Body = io.NopCloser(io.MultiReader(strings.NewReader("{"), failing{}))
			return r
		}, 400, false},
		{"unsigned", func() *http.Request {
			r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(good))
			r.Header.Set("Content-Type", "application/json")
			return r
		}, 401, false},
		{"by a stranger", func() *http.Request { return delivery(t, "m", epoch, good, stranger) }, 401, false},
		{"altered", func() *http.Request {
			r := delivery(t, "m", epoch, good, key)
			r.Body = io.NopCloser(bytes.NewReader(append(good, ' ')))
			return r
		}, 401, false},
		{"replayed too late", func() *http.Request { return delivery(t, "m", epoch.Add(-5*time.Minute-time.Second), good, key) }, 401, false},
		{"from the future", func() *http.Request { return delivery(t, "m", epoch.Add(5*time.Minute+time.Second), good, key) }, 401, false},
		{"id twice", func() *http.Request {
			r := delivery(t, "m", epoch, good, key)
			r.Header.Add("webhook-id", "m")
			return r
		}, 401, false},
		{"empty", func() *http.Request { return delivery(t, "m", epoch, nil, key) }, 400, false},
		{"not JSON", func() *http.Request { return delivery(t, "m", epoch, []byte("hello"), key) }, 400, false},
		{"not an object", func() *http.Request { return delivery(t, "m", epoch, []byte("[1]"), key) }, 400, false},
		{"no type", func() *http.Request { return delivery(t, "m", epoch, []byte(`{"data":{}}`), key) }, 400, false},
		{"two values", func() *http.Request { return delivery(t, "m", epoch, append(good, good...), key) }, 400, false},
		{"no data", func() *http.Request { return delivery(t, "m", epoch, []byte(`{"type":"grant.issued"}`), key) }, 400, false},
		{"null data", func() *http.Request { return delivery(t, "m", epoch, issued("null"), key) }, 400, false},
		{"no code", func() *http.Request { return delivery(t, "m", epoch, issued(`{"id":"g"}`), key) }, 400, false},
		{"no id", func() *http.Request { return delivery(t, "m", epoch, issued(`{"code":"g"}`), key) }, 400, false},
		{"code of another kind", func() *http.Request { return delivery(t, "m", epoch, issued(`{"id":"g","code":["c"]}`), key) }, 400, false},
		{"bad scope", func() *http.Request { return delivery(t, "m", epoch, issued(`{"id":"g","code":"c","scope":"?"}`), key) }, 400, false},
		{"bad time", func() *http.Request {
			return delivery(t, "m", epoch, issued(`{"id":"g","code":"c","redeem_by":"soon"}`), key)
		}, 400, false},
		{"bad domain", func() *http.Request {
			return delivery(t, "m", epoch, issued(`{"id":"g","code":"c","event":{"domain":"//"}}`), key)
		}, 400, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var handled int
			var log bytes.Buffer
			rc := &app.Receiver{Keys: []webhook.Key{key, old.Public()}, Log: slog.New(slog.NewTextHandler(&log, nil)),
				Now: func() time.Time { return epoch }, Handle: func(context.Context, app.Grant) error { handled++; return nil }}
			w := serve(rc, c.request())
			require.Equal(t, c.status, w.Code, w.Body.String())
			require.Equal(t, c.handled, handled == 1)
			if c.status == 405 {
				require.Equal(t, "POST", w.Header().Get("Allow"))
			}
			if c.status == 401 { // strangers get one and the same answer
				require.Equal(t, "signature refused\n", w.Body.String())
			}
			require.NotContains(t, w.Body.String()+log.String(), "topsecret")
		})
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestReceiverThatIsNotConfigured(t *testing.T) {
	key := webhook.NewSecret()
	for _, rc := range []*app.Receiver{
		{Log: quiet},
		{Log: quiet, Keys: []webhook.Key{key}},
		{Log: quiet, Handle: func(context.Context, app.Grant) error { return nil }},
		{Log: quiet, Handle: func(context.Context, app.Grant) error { return nil }, Keys: []webhook.Key{{}}},
	} {
		w := serve(rc, delivery(t, "m", time.Now(), issued(grantJSON), key))
		require.Equal(t, 500, w.Code)
		require.Equal(t, "not configured\n", w.Body.String())
	}
}

// What Handle took is not handed over again; what it did not take is.
func TestReceiverRemembersSuccessOnly(t *testing.T) {
	key := webhook.NewSecret()
	now := epoch
	var calls int
	var result error
	var log bytes.Buffer
	rc := &app.Receiver{Keys: []webhook.Key{key}, Log: slog.New(slog.NewTextHandler(&log, nil)), Now: func() time.Time { return now },
		Handle: func(context.Context, app.Grant) error { calls++; return result }}
	try := func() *httptest.ResponseRecorder { return serve(rc, delivery(t, "msg_1", now, issued(grantJSON), key)) }

	result = errors.New("database password is hunter2")
	w := try()
	require.Equal(t, 500, w.Code)
	require.Equal(t, "not handled, try again\n", w.Body.String())
	require.NotEmpty(t, w.Header().Get("Retry-After"))
	require.Contains(t, log.String(), "hunter2", "the cause is for the log")
	require.Equal(t, 500, try().Code)
	require.Equal(t, 2, calls)

	result = nil
	require.Equal(t, 204, try().Code)
	require.Equal(t, 3, calls)
	result = errors.New("never seen")
	require.Equal(t, 204, try().Code)
	now = now.Add(11*time.Minute - time.Nanosecond) // redeem_by is at one minute
	require.Equal(t, 204, try().Code)
	require.Equal(t, 3, calls)
	now = now.Add(time.Nanosecond)
	require.Equal(t, 500, try().Code, "forgotten")
	require.Equal(t, 4, calls)
}

func TestReceiverRemembersSoManyAndSoLong(t *testing.T) {
	key := webhook.NewSecret()
	now := epoch
	calls := map[string]int{}
	rc := &app.Receiver{Keys: []webhook.Key{key}, Remember: 3, Log: quiet, Now: func() time.Time { return now },
		Handle: func(_ context.Context, g app.Grant) error { calls[g.ID]++; return nil }}
	try := func(id, redeemBy string) {
		body := issued(fmt.Sprintf(`{"id":%q,"code":"c","redeem_by":%q}`, id, redeemBy))
		require.Equal(t, 204, serve(rc, delivery(t, id, now, body, key)).Code)
	}
	const far = "2030-01-01T00:00:00Z"
	for _, id := range []string{"a", "b", "c", "a", "b", "c"} {
		try(id, far)
	}
	require.Equal(t, map[string]int{"a": 1, "b": 1, "c": 1}, calls)
	try("d", far) // the oldest, a, goes
	try("b", far)
	try("a", far)
	require.Equal(t, map[string]int{"a": 2, "b": 1, "c": 1, "d": 1}, calls)

	now = now.Add(24*time.Hour - time.Second)
	try("d", far)
	require.Equal(t, 1, calls["d"])
	now = now.Add(time.Second)
	try("d", far)
	require.Equal(t, 2, calls["d"], "not for longer than a day")

	try("past", "2020-01-01T00:00:00Z")
	now = now.Add(10*time.Minute - time.Second)
	try("past", "2020-01-01T00:00:00Z")
	require.Equal(t, 1, calls["past"], "as long as a copy verifies")
}

// 64 tries of one message at once: one is handled, and all learn how it ended.
func TestReceiverConcurrentDuplicates(t *testing.T) {
	for _, result := range []error{nil, errors.New("no")} {
		synctest.Test(t, func(t *testing.T) {
			key := webhook.NewSecret()
			var calls atomic.Int32
			release := make(chan struct{})
			rc := &app.Receiver{Keys: []webhook.Key{key}, Log: quiet, Handle: func(context.Context, app.Grant) error {
				calls.Add(1)
				<-release
				return result
			}}
			codes := make(chan int, 64)
			for range 64 {
				r := delivery(t, "msg_1", time.Now(), issued(grantJSON), key)
				go func() { codes <- serve(rc, r).Code }()
			}
			synctest.Wait()
			require.EqualValues(t, 1, calls.Load())
			require.Empty(t, codes)
			close(release)
			synctest.Wait()
			require.EqualValues(t, 1, calls.Load())
			count := map[int]int{}
			for range 64 {
				count[<-codes]++
			}
			if result == nil {
				require.Equal(t, map[int]int{204: 64}, count)
				return
			}
			require.Equal(t, map[int]int{500: 1, 503: 63}, count)
		})
	}
}

// Over real connections and with many ids at once, for the race detector.
func TestReceiverUnderLoad(t *testing.T) {
	key := webhook.NewSecret()
	var mu sync.Mutex
	calls := map[string]int{}
	rc := &app.Receiver{Keys: []webhook.Key{key}, Remember: 10_000, Log: quiet, Handle: func(_ context.Context, g app.Grant) error {
		mu.Lock()
		defer mu.Unlock()
		calls[g.ID]++
		return nil
	}}
	var wg sync.WaitGroup
	for worker := range 64 {
		wg.Go(func() {
			for i := range 16 {
				id := fmt.Sprintf("g%d", (i+worker)%16)
				body := issued(fmt.Sprintf(`{"id":%q,"code":"c"}`, id))
				r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
				r.Header.Set("Content-Type", "application/json")
				if webhook.Sign(r.Header, id, time.Now(), body, key) != nil || serve(rc, r).Code != 204 {
					t.Error("refused")
				}
			}
		})
	}
	wg.Wait()
	require.Len(t, calls, 16)
	for id, n := range calls {
		require.Equal(t, 1, n, id)
	}
}

// A duplicate whose sender hangs up while it waits is let go; the one that is handled is not disturbed.
func TestReceiverDisconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := webhook.NewSecret()
		release := make(chan struct{})
		var handlerErr error
		rc := &app.Receiver{Keys: []webhook.Key{key}, Log: quiet, Handle: func(ctx context.Context, _ app.Grant) error {
			<-release
			handlerErr = ctx.Err()
			return nil
		}}
		first, hangUpFirst := context.WithCancel(t.Context())
		second, hangUpSecond := context.WithCancel(t.Context())
		codes := make(chan int, 2)
		r1 := delivery(t, "m", time.Now(), issued(grantJSON), key).WithContext(first)
		r2 := delivery(t, "m", time.Now(), issued(grantJSON), key).WithContext(second)
		go func() { codes <- serve(rc, r1).Code }()
		synctest.Wait()
		go func() { codes <- serve(rc, r2).Code }()
		synctest.Wait()
		hangUpSecond()
		require.Equal(t, 503, <-codes)
		hangUpFirst()
		synctest.Wait()
		close(release)
		require.Equal(t, 204, <-codes)
		require.NoError(t, handlerErr, "what was begun is not thrown away")
		require.Equal(t, 204, serve(rc, delivery(t, "m", time.Now(), issued(grantJSON), key)).Code, "and the next try finds it done")
	})
}

func TestReceiverTimeout(t *testing.T) {
	for timeout, want := range map[time.Duration]time.Duration{0: time.Minute, time.Second: time.Second} {
		synctest.Test(t, func(t *testing.T) {
			key := webhook.NewSecret()
			began := time.Now()
			rc := &app.Receiver{Keys: []webhook.Key{key}, Timeout: timeout, Log: quiet, Handle: func(ctx context.Context, _ app.Grant) error {
				<-ctx.Done()
				return ctx.Err()
			}}
			require.Equal(t, 500, serve(rc, delivery(t, "m", time.Now(), issued(grantJSON), key)).Code)
			require.Equal(t, want, time.Since(began))
		})
	}
}

// A panic goes on to net/http, and the delivery counts as failed: those who wait are told, and the next is handled.
func TestReceiverPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := webhook.NewSecret()
		release := make(chan struct{})
		var calls atomic.Int32
		rc := &app.Receiver{Keys: []webhook.Key{key}, Log: quiet, Handle: func(context.Context, app.Grant) error {
			if calls.Add(1) == 1 {
				<-release
				panic("boom")
			}
			return nil
		}}
		panicked, code := make(chan any, 1), make(chan int, 1)
		r1 := delivery(t, "m", time.Now(), issued(grantJSON), key)
		r2 := delivery(t, "m", time.Now(), issued(grantJSON), key)
		go func() {
			defer func() { panicked <- recover() }()
			serve(rc, r1)
		}()
		synctest.Wait()
		go func() { code <- serve(rc, r2).Code }()
		synctest.Wait()
		close(release)
		require.Equal(t, "boom", <-panicked)
		require.Equal(t, 503, <-code)
		require.Equal(t, 204, serve(rc, delivery(t, "m", time.Now(), issued(grantJSON), key)).Code)
		require.EqualValues(t, 2, calls.Load())
	})
}

// Through net/http: a body over the limit ends in 413, and a panicking handler in a closed connection and a next try that works.
func TestReceiverOverHTTP(t *testing.T) {
	key := webhook.NewSecret()
	var calls atomic.Int32
	srv := httptest.NewUnstartedServer(&app.Receiver{Keys: []webhook.Key{key}, Log: quiet, Handle: func(context.Context, app.Grant) error {
		if calls.Add(1) == 1 {
			panic(http.ErrAbortHandler)
		}
		return nil
	}})
	srv.Start()
	defer srv.Close()
	post := func(body []byte) (*http.Response, error) {
		req, err := http.NewRequest(http.MethodPost, srv.URL, bytes.NewReader(body))
		require.NoError(t, err)
		req.GetBody = nil // nobody but us tries again
		req.Header.Set("Content-Type", "application/json")
		require.NoError(t, webhook.Sign(req.Header, "m", time.Now(), body, key))
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err == nil {
			resp.Body.Close()
		}
		return resp, err
	}
	_, err := post(issued(grantJSON))
	require.Error(t, err)
	resp, err := post(issued(grantJSON))
	require.NoError(t, err)
	require.Equal(t, 204, resp.StatusCode)
	resp, err = post(make([]byte, 300<<10))
	require.NoError(t, err)
	require.Equal(t, 413, resp.StatusCode)
}

// Whatever is sent, signed or not, gets one of the documented answers, and only what is signed and a grant is handled.
func FuzzReceiver(f *testing.F) {
	key, err := webhook.ParseKey("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	require.NoError(f, err)
	f.Add("POST", "application/json", "m", "", issued(grantJSON), true)
	f.Add("POST", "application/json", "m", "v1,AAAA", []byte("{}"), false)
	f.Add("GET", "text/html; x", "m.m", "v1a,", []byte(nil), false)
	f.Add("POST", "application/json", "m", "", []byte(`{"type":"grant.issued","data":{"id":"g","code":"c","event":{"data":{"a":1}}}}`), true)
	f.Fuzz(func(t *testing.T, method, contentType, id, signature string, body []byte, sign bool) {
		handled := false
		rc := &app.Receiver{Keys: []webhook.Key{key}, Log: quiet, Now: func() time.Time { return epoch },
			Handle: func(_ context.Context, g app.Grant) error {
				handled = true
				if g.ID == "" || g.Code.IsZero() {
					t.Error("half a grant")
				}
				return nil
			}}
		r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
		r.Method = method
		r.Header.Set("Content-Type", contentType)
		r.Header[webhook.HeaderID] = []string{id}
		r.Header[webhook.HeaderTimestamp] = []string{fmt.Sprint(epoch.Unix())}
		r.Header[webhook.HeaderSignature] = []string{signature}
		if sign {
			sign = webhook.Sign(r.Header, id, epoch, body, key) == nil
		}
		w := serve(rc, r)
		require.Contains(t, []int{204, 400, 401, 405, 413, 415}, w.Code)
		if handled {
			require.Equal(t, 204, w.Code)
			require.True(t, sign)
			require.True(t, json.Valid(body))
		}
	})
}

func BenchmarkReceiver(b *testing.B) {
	key := webhook.NewSecret()
	now := time.Now()
	rc := &app.Receiver{Keys: []webhook.Key{key}, Log: quiet, Handle: func(context.Context, app.Grant) error { return nil }}
	body := issued(grantJSON)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if w := serve(rc, delivery(b, fmt.Sprint("m", i), now, body, key)); w.Code != 204 {
			b.Fatal(w.Code)
		}
	}
}
