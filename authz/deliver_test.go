package authz_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/authztest"
	"github.com/behest-go/behest/authz/webhook"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// A hostile webhook loses no grant that is still alive: it comes again, with the same webhook-id, until it is taken.
func TestDeliverToHostileReceivers(t *testing.T) {
	hijack := func(rw http.ResponseWriter, answer string) {
		conn, _, err := rw.(http.Hijacker).Hijack()
		if err == nil {
			_, _ = io.WriteString(conn, answer)
			_ = conn.Close()
		}
	}
	endless := func(rw http.ResponseWriter, r *http.Request) {
		line := bytes.Repeat([]byte("x"), 32<<10)
		for r.Context().Err() == nil {
			if _, err := rw.Write(line); err != nil {
				return
			}
		}
	}
	for _, row := range []struct {
		name   string
		tries  int // those that fail
		answer func(rw http.ResponseWriter, r *http.Request)
	}{
		{"500 three times", 3, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(500) }},
		{"410 three times", 3, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(410) }},
		{"429", 1, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(429) }},
		{"an endless 500", 1, func(rw http.ResponseWriter, r *http.Request) { rw.WriteHeader(500); endless(rw, r) }},
		{"a redirect to itself", 3, func(rw http.ResponseWriter, r *http.Request) {
			http.Redirect(rw, r, "/evil", http.StatusTemporaryRedirect)
		}},
		{"a redirect elsewhere", 1, func(rw http.ResponseWriter, r *http.Request) {
			http.Redirect(rw, r, "http://169.254.169.254/latest", http.StatusFound)
		}},
		{"a closed socket", 3, func(rw http.ResponseWriter, _ *http.Request) { hijack(rw, "") }},
		{"half an answer", 1, func(rw http.ResponseWriter, _ *http.Request) { hijack(rw, "HTTP/1.1 20") }},
		{"no HTTP", 1, func(rw http.ResponseWriter, _ *http.Request) { hijack(rw, "SSH-2.0-OpenSSH_9.9\r\n") }},
		{"another protocol", 1, func(rw http.ResponseWriter, _ *http.Request) {
			hijack(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
		}},
		{"endless headers", 1, func(rw http.ResponseWriter, _ *http.Request) {
			hijack(rw, "HTTP/1.1 200 OK\r\n"+strings.Repeat("X: "+strings.Repeat("x", 1000)+"\r\n", 1000)+"\r\n")
		}},
		{"an endless 200", 0, endless},
		{"a 200 that never ends", 0, func(rw http.ResponseWriter, r *http.Request) {
			rw.WriteHeader(200)
			rw.(http.Flusher).Flush()
			<-r.Context().Done()
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			type try struct {
				header http.Header
				body   []byte
			}
			tries, elsewhere := make(chan try, 100), atomic.Int64{}
			var n atomic.Int64
			hook := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/hook" {
					elsewhere.Add(1)
					return
				}
				body, _ := io.ReadAll(r.Body)
				tries <- try{r.Header.Clone(), body}
				if int(n.Add(1)) <= max(row.tries, 1) {
					row.answer(rw, r)
				}
			}))
			defer hook.Close()
			attempts := make(chan grant.Entry, 100)
			s := authztest.New(t, authz.Config{
				Apps:     []authz.App{{ID: "book.bot", Actions: []string{"message.write"}, Webhook: hook.URL + "/hook"}},
				Triggers: []grant.Trigger{{App: "book.bot", On: grant.Mention, In: "*", Allow: []string{"message.write"}, RedeemWithin: time.Minute}},
				Observe: func(_ context.Context, e grant.Entry) {
					if strings.HasSuffix(e.What, "delivered") {
						attempts <- e
					}
				},
				AllowWebhooksTo: []string{hook.Listener.Addr().String()},
			})
			issued := s.MustEmit(grant.Event{ID: "m1", Operation: grant.Mention, Account: "zhang-san", App: "book.bot", Domain: scope.MustDomain("group:42"), Text: "<hi> & 你好"})
			var last try
			stamps := map[string]bool{}
			for i := range row.tries + 1 {
				last = <-tries
				require.Equal(t, []string{issued[0].ID}, last.header["Webhook-Id"], "the same at each try")
				require.Equal(t, "application/json", last.header.Get("Content-Type"))
				stamps[last.header.Get("Webhook-Timestamp")] = true
				for _, text := range []string{s.WebhookSecret("book.bot").Reveal(), s.WebhookKey("book.bot")} {
					key, err := webhook.ParseKey(text)
					require.NoError(t, err)
					_, err = webhook.Verify(last.header, last.body, s.Clock.Now(), key)
					require.NoError(t, err)
				}
				e := <-attempts
				require.Equal(t, []any{i + 1, "book.bot", issued[0].ID}, []any{e.Count, e.App, e.Grant})
				if i < row.tries {
					require.Equal(t, "undelivered", e.What)
					s.Clock.Advance(8 * time.Second) // longer than the pauses so far
					s.Wake()
				} else {
					require.Equal(t, "delivered", e.What)
				}
			}
			require.Len(t, stamps, row.tries+1, "each try is signed anew")
			require.Zero(t, elsewhere.Load(), "a redirect was followed")

			// The message is the pinned one, and its code is good.
			var message struct {
				Type      string
				Timestamp time.Time
				Data      map[string]any
			}
			require.NoError(t, json.Unmarshal(last.body, &message))
			require.Equal(t, "grant.issued", message.Type)
			require.Equal(t, issued[0].IssuedAt, message.Timestamp)
			require.Equal(t, map[string]any{
				"id": issued[0].ID, "code": issued[0].Code.Reveal(), "scope": "group:42/message.write", "redeem_by": issued[0].RedeemBy.Format(time.RFC3339),
				"event": map[string]any{"id": "m1", "operation": "mention", "account": s.Engine().Name("book.bot", "zhang-san"), "domain": "group:42",
					"text": "<hi> & 你好", "at": issued[0].IssuedAt.Format(time.RFC3339)},
			}, message.Data)
			require.NotEmpty(t, s.Redeem(issued[0]))
			require.Empty(t, tries)
		})
	}
}

// One app hangs, with a hundred grants, until another's one delivery has arrived: that would be never, if it had to wait for the first.
func TestDeliverPastAHangingApp(t *testing.T) {
	arrived := make(chan struct{})
	var good, hung, held atomic.Int64
	var mu sync.Mutex
	ids := map[string]int{}
	hook := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // or the server cannot see the client go
		if r.URL.Path == "/good" {
			good.Add(1)
			held.Store(hung.Load()) // as long as none of them can end
			close(arrived)
			return
		}
		hung.Add(1)
		<-arrived
		mu.Lock()
		defer mu.Unlock()
		ids[r.Header.Get(webhook.HeaderID)]++
	}))
	defer hook.Close()
	delivered := make(chan string, 1000)
	s := authztest.New(t, authz.Config{
		Apps: []authz.App{{ID: "hang", Actions: []string{"message.write"}, Webhook: hook.URL + "/hang"},
			{ID: "good", Actions: []string{"message.write"}, Webhook: hook.URL + "/good"}},
		Triggers: []grant.Trigger{{App: "hang", On: grant.Mention, In: "*", Allow: []string{"message.write"}},
			{App: "good", On: grant.Mention, In: "*", Allow: []string{"message.write"}}},
		Observe: func(_ context.Context, e grant.Entry) {
			if strings.HasSuffix(e.What, "delivered") {
				delivered <- e.App + " " + e.What
			}
		},
		AllowWebhooksTo: []string{hook.Listener.Addr().String()},
	})
	for i := range 100 {
		s.MustEmit(grant.Event{ID: strconv.Itoa(i), Operation: grant.Mention, Account: "zhang-san", App: "hang", Domain: scope.MustDomain("group:42")})
	}
	s.MustEmit(grant.Event{ID: "one", Operation: grant.Mention, Account: "li-si", App: "good", Domain: scope.MustDomain("group:42")})
	<-arrived
	require.Less(t, held.Load(), int64(10), "an app that hangs has few places")
	count := map[string]int{}
	for range 101 {
		count[<-delivered]++
	}
	require.Equal(t, map[string]int{"good delivered": 1, "hang delivered": 100}, count)
	mu.Lock()
	defer mu.Unlock()
	require.Len(t, ids, 100)
	require.EqualValues(t, 1, good.Load())
	for id, n := range ids {
		require.Equal(t, 1, n, id)
	}
}

// A pusher stands for the guarded client of a Deliverer, in a bubble.
type pusher struct {
	mu   sync.Mutex
	at   map[string][]time.Duration // by webhook-id: when it was tried, since the start
	apps map[string]int             // by URL
	from time.Time
	post func(ctx context.Context, url string, try int) (int, error)
	wait time.Duration // what the app asks for
}

func (p *pusher) Post(ctx context.Context, url string, header http.Header, _ []byte) (int, time.Duration, error) {
	p.mu.Lock()
	id := header.Get(webhook.HeaderID)
	p.at[id] = append(p.at[id], time.Since(p.from))
	p.apps[url]++
	try := len(p.at[id])
	p.mu.Unlock()
	if p.post == nil {
		return 204, p.wait, nil
	}
	status, err := p.post(ctx, url, try)
	return status, p.wait, err
}

func (p *pusher) tried() map[string][]time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[string][]time.Duration{}
	for id, at := range p.at {
		out[id] = append([]time.Duration(nil), at...)
	}
	return out
}

func (p *pusher) to(url string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.apps[url]
}

func hang(ctx context.Context, _ string, _ int) (int, error) {
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(10 * time.Second): // as the guarded client does
		return 0, context.DeadlineExceeded
	}
}

// pushing makes a server with apps app0, app1, … that have webhooks, and what delivers to them.
func pushing(tb testing.TB, apps int, within time.Duration, post func(ctx context.Context, url string, try int) (int, error)) (*authz.Server, *spyStore, *authz.Deliverer, *pusher) {
	p := &pusher{at: map[string][]time.Duration{}, apps: map[string]int{}, from: time.Now(), post: post}
	targets := map[string]authz.Target{}
	servers, mem := bubble(tb, 1, func(c *authz.Config) {
		c.Apps, c.Triggers = nil, nil
		for i := range apps {
			id := fmt.Sprintf("app%d", i)
			c.Apps = append(c.Apps, authz.App{ID: id, Secret: grant.NewSecret("long enough"), Actions: []string{"message.write"}, Webhook: "https://apps.example/" + id})
			c.Triggers = append(c.Triggers, grant.Trigger{App: id, On: grant.Mention, In: "*", Allow: []string{"message.write"}, RedeemWithin: within, Uses: 1})
			targets[id] = authz.Target{URL: id, Keys: []webhook.Key{webhook.NewSecret()}}
		}
	})
	return servers[0], mem, &authz.Deliverer{Engine: servers[0].Engine(), Targets: targets, Post: p.Post}, p
}

func push(tb testing.TB, az *authz.Server, app, id string) authz.Issued {
	tb.Helper()
	issued, err := az.Emit(tb.Context(), grant.Event{ID: id, Operation: grant.Mention, Account: "zhang-san", App: app, Domain: scope.MustDomain("group:42")})
	require.NoError(tb, err)
	require.Len(tb, issued, 1)
	return issued[0]
}

// background runs f, and returns what stops it and waits.
func background(tb testing.TB, f func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(tb.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

func outbox(tb testing.TB, s store.Store) []store.Record {
	tb.Helper()
	left, err := s.List(context.Background(), store.Query{Kind: "push", Limit: store.MaxPage})
	require.NoError(tb, err)
	return left
}

// The pauses grow, and shrink again towards the end of the code; after that there is none.
func TestDeliverBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		az, mem, d, p := pushing(t, 1, time.Minute, func(context.Context, string, int) (int, error) { return 503, nil })
		i := push(t, az, "app0", "m1")
		stop := background(t, d.Run)
		time.Sleep(10 * time.Minute)
		stop()
		at := p.tried()[i.ID]
		require.Greater(t, len(at), 6)
		require.Less(t, len(at), 20)
		require.Zero(t, at[0])
		pause := 500 * time.Millisecond
		for n := 1; n < len(at); n++ {
			gap, half := at[n]-at[n-1], (time.Minute-at[n-1])/2
			require.GreaterOrEqual(t, gap, min(pause, max(half, 250*time.Millisecond)))
			require.LessOrEqual(t, gap, min(pause*5/4, half)+250*time.Millisecond, "a quarter of chance, and the time between two looks")
			pause = min(2*pause, 15*time.Second)
		}
		final := at[len(at)-1]
		require.Less(t, final, time.Minute)
		require.GreaterOrEqual(t, final, 59*time.Second)
		require.Empty(t, outbox(t, mem))
	})
}

// An app that comes back at any moment before the code's end gets the grant.
func TestDeliverToTheLast(t *testing.T) {
	for _, within := range []time.Duration{time.Second, 3 * time.Second, 10 * time.Second, time.Minute, time.Hour} {
		t.Run(within.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				az, mem, d, p := pushing(t, 1, within, func(context.Context, string, int) (int, error) {
					if time.Since(began) < within-min(within/4, 2500*time.Millisecond) {
						return 0, errors.New("connection refused")
					}
					return 200, nil
				})
				i := push(t, az, "app0", "m1")
				stop := background(t, d.Run)
				time.Sleep(within)
				stop()
				at := p.tried()[i.ID]
				require.Greater(t, len(at), 1)
				require.Less(t, at[len(at)-1], within)
				require.GreaterOrEqual(t, at[len(at)-1], within-min(within/4, 2500*time.Millisecond), "never came again")
				require.Empty(t, outbox(t, mem))
			})
		})
	}
}

// Neither many apps that hang, with many grants each, nor heaps of deliveries that are over delay another's.
func TestDeliverPastManyDeadApps(t *testing.T) {
	const dead = 500
	t.Run("hanging", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			az, _, d, p := pushing(t, dead+1, time.Hour, func(ctx context.Context, url string, try int) (int, error) {
				if url == fmt.Sprintf("app%d", dead) {
					return 200, nil
				}
				return hang(ctx, url, try)
			})
			for app := range dead {
				for n := range 8 {
					push(t, az, fmt.Sprintf("app%d", app), fmt.Sprintf("%d-%d", app, n))
				}
			}
			stop := background(t, d.Run)
			synctest.Wait()
			for n := range 20 { // at any time
				good := push(t, az, fmt.Sprintf("app%d", dead), fmt.Sprintf("good%d", n))
				began := time.Since(p.from)
				time.Sleep(time.Second)
				require.Len(t, p.tried()[good.ID], 1)
				require.LessOrEqual(t, p.tried()[good.ID][0]-began, 250*time.Millisecond)
			}
			stop()
			require.LessOrEqual(t, p.to("app0"), 3*7, "places of an app that hangs")
		})
	})
	for name, end := range map[string]func(t *testing.T, az *authz.Server){
		"expired": func(*testing.T, *authz.Server) { time.Sleep(2 * time.Minute) },
		"revoked": func(t *testing.T, az *authz.Server) {
			require.NoError(t, az.Engine().RevokeApp(t.Context(), "zhang-san", "app0", scope.MustDomain("group:42")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				az, mem, d, p := pushing(t, 2, time.Minute, nil)
				for n := range 500 {
					push(t, az, "app0", strconv.Itoa(n))
				}
				end(t, az)
				good := push(t, az, "app1", "good")
				began := time.Since(p.from)
				stop := background(t, d.Run)
				synctest.Wait()
				require.Equal(t, []time.Duration{began}, p.tried()[good.ID], "at the first look")
				require.Zero(t, p.to("app0"))
				stop()
				require.Empty(t, outbox(t, mem))
			})
		})
	}
}

// What was revoked, or redeemed by another way, is not pushed.
func TestDeliverOnlyWhatIsAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		az, mem, d, p := pushing(t, 1, time.Minute, nil)
		grantOnly, redeemed := push(t, az, "app0", "grant"), push(t, az, "app0", "redeemed")
		require.NoError(t, az.Engine().Revoke(t.Context(), "zhang-san", grantOnly.ID))
		_, _, err := az.Engine().Redeem(t.Context(), "app0", redeemed.Code)
		require.NoError(t, err)
		stop := background(t, d.Run)
		synctest.Wait()
		require.Empty(t, p.tried())
		stop()
		push(t, az, "app0", "account")
		require.NoError(t, az.Engine().RevokeAccount(t.Context(), "zhang-san"))
		push(t, az, "app0", "here")
		require.NoError(t, az.Engine().RevokeApp(t.Context(), "zhang-san", "app0", scope.MustDomain("group:42")))
		alive := push(t, az, "app0", "alive")
		stop = background(t, d.Run)
		time.Sleep(5 * time.Minute)
		require.Len(t, p.tried(), 1)
		require.Len(t, p.tried()[alive.ID], 1)
		stop()
		require.Empty(t, outbox(t, mem))
	})
}

// A worker that dies in the middle, or whose store does, keeps its lease and no more.
func TestDeliverAfterACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		az, mem, d, p := pushing(t, 1, time.Minute, nil)
		i := push(t, az, "app0", "m1")
		dying := &readOnly{Store: mem}
		crashed := &authz.Deliverer{Engine: az.Engine().In(dying), Targets: d.Targets, Post: func(context.Context, string, http.Header, []byte) (int, time.Duration, error) {
			return 0, 0, errors.New("the machine burns")
		}}
		stop := background(t, crashed.Run)
		synctest.Wait()
		stop()
		require.EqualValues(t, 1, dying.applies.Load())
		stop = background(t, d.Run)
		defer stop()
		time.Sleep(29 * time.Second)
		require.Empty(t, p.tried())
		time.Sleep(2 * time.Second)
		require.Len(t, p.tried()[i.ID], 1)
		require.Empty(t, outbox(t, mem))
	})
}

type readOnly struct {
	store.Store
	applies atomic.Int64
}

func (s *readOnly) Apply(context.Context, time.Time, []store.Op) (store.Outcome, error) {
	s.applies.Add(1)
	return store.Outcome{}, errors.New("read only")
}

// A code that waits for less than a lease is not lost with the worker that dies with it, neither for push nor for poll.
func TestDeliverAShortCodeAfterACrash(t *testing.T) {
	for _, within := range []time.Duration{time.Second, 5 * time.Second, 20 * time.Second} {
		t.Run(within.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				az, mem, d, p := pushing(t, 1, within, nil)
				i := push(t, az, "app0", "m1")
				got, err := az.Engine().Claim(t.Context(), grant.Push, "app0", nil, 1, 30*time.Second) // and dies
				require.NoError(t, err)
				require.Len(t, got, 1)
				defer background(t, d.Run)()
				time.Sleep(within)
				require.Len(t, p.tried()[i.ID], 1)
				require.LessOrEqual(t, p.tried()[i.ID][0], within*3/4)
				require.Empty(t, outbox(t, mem))
			})
		})
	}
}

// An attempt ends when its lease does: an app that hangs is not tried by two at once, and is tried again in time.
func TestDeliverBreaksOffWithTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now atomic.Int64
		az, _, d, p := pushing(t, 1, 6*time.Second, func(ctx context.Context, url string, try int) (int, error) {
			now.Add(1)
			defer now.Add(-1)
			if try == 1 {
				return hang(ctx, url, try)
			}
			return 200, nil
		})
		i := push(t, az, "app0", "m1")
		defer background(t, d.Run)()
		time.Sleep(2999 * time.Millisecond)
		require.EqualValues(t, 1, now.Load())
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		require.Zero(t, now.Load())
		time.Sleep(2 * time.Second)
		require.Len(t, p.tried()[i.ID], 2)
	})
}

// An app that asks to be left alone is, until the code has nearly come to its end.
func TestDeliverHeedsRetryAfter(t *testing.T) {
	for _, row := range []struct {
		status        int
		wait          time.Duration
		second, atEnd time.Duration // when the second try comes, at the earliest and at the latest
	}{
		{503, 20 * time.Second, 20 * time.Second, 26 * time.Second},
		{429, 20 * time.Second, 20 * time.Second, 26 * time.Second},
		{429, time.Hour, 58 * time.Second, 59 * time.Second},               // longer than the code lives
		{429, 100 * time.Millisecond, 500 * time.Millisecond, time.Second}, // no shorter than without
		{500, 20 * time.Second, 500 * time.Millisecond, time.Second},       // RFC 9110 §10.2.3, RFC 6585 §4: not with these
		{http.StatusFound, 20 * time.Second, 500 * time.Millisecond, time.Second},
	} {
		t.Run(fmt.Sprint(row.status, row.wait), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				az, mem, d, p := pushing(t, 1, time.Minute, func(_ context.Context, _ string, try int) (int, error) {
					if try == 1 {
						return row.status, nil
					}
					return 200, nil
				})
				p.wait = row.wait
				i := push(t, az, "app0", "m1")
				defer background(t, d.Run)()
				time.Sleep(time.Minute)
				at := p.tried()[i.ID]
				require.Len(t, at, 2)
				require.GreaterOrEqual(t, at[1], row.second)
				require.LessOrEqual(t, at[1], row.atEnd)
				require.Empty(t, outbox(t, mem))
			})
		})
	}
}

// A store that is away for a while costs time and no grant.
func TestDeliverAfterAStoreFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		az, mem, d, p := pushing(t, 1, time.Minute, nil)
		var log lockedBuffer
		d.Log = slog.New(slog.NewTextHandler(&log, nil))
		i := push(t, az, "app0", "m1")
		mem.fail(errors.New("disk on fire"))
		defer background(t, d.Run)()
		time.Sleep(10 * time.Second)
		require.Empty(t, p.tried())
		require.Contains(t, log.String(), "disk on fire")
		mem.fail(nil)
		time.Sleep(time.Second)
		require.Len(t, p.tried()[i.ID], 1)
		require.Empty(t, outbox(t, mem))
	})
}

// Run ends with deliveries that hang: after a moment of grace they are broken off, and are due at once for who delivers next.
func TestDeliverShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		az, mem, d, p := pushing(t, 2, time.Minute, func(ctx context.Context, url string, try int) (int, error) {
			if url == "app1" {
				time.Sleep(1500 * time.Millisecond)
				return 200, nil
			}
			return hang(ctx, url, try)
		})
		hung, slow := push(t, az, "app0", "m1"), push(t, az, "app1", "m2")
		stop := background(t, d.Run)
		synctest.Wait()
		require.Len(t, p.tried(), 2)
		began := time.Now()
		stop()
		require.Equal(t, 2*time.Second, time.Since(began))
		left := outbox(t, mem)
		require.Len(t, left, 1, "what came to its end by itself is delivered")
		require.Equal(t, "app0", left[0].App)
		p.post = nil
		stop = background(t, d.Run)
		synctest.Wait()
		require.Len(t, p.tried()[hung.ID], 2)
		require.Equal(t, 2*time.Second, p.tried()[hung.ID][1])
		stop()
		require.Len(t, p.tried()[slow.ID], 1)
		began = time.Now()
		background(t, d.Run)() // with nothing to do it ends at once
		require.Equal(t, began, time.Now())
	})
}

// Several that deliver from one store push each grant once.
func TestDeliverOnceByMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		az, mem, d, p := pushing(t, 5, time.Minute, func(context.Context, string, int) (int, error) {
			time.Sleep(50 * time.Millisecond)
			return 202, nil
		})
		second := &authz.Deliverer{Engine: d.Engine, Targets: d.Targets, Post: d.Post, Wait: d.Wait}
		for n := range 200 {
			push(t, az, fmt.Sprintf("app%d", n%5), strconv.Itoa(n))
		}
		stop, stop2 := background(t, d.Run), background(t, second.Run)
		for n := range 200 {
			push(t, az, fmt.Sprintf("app%d", n%5), strconv.Itoa(1000+n))
		}
		time.Sleep(time.Minute)
		stop()
		stop2()
		require.Len(t, p.tried(), 400)
		for id, at := range p.tried() {
			require.Len(t, at, 1, id)
		}
		require.Empty(t, outbox(t, mem))
	})
}

// The same with whole servers and a real webhook, and one of them stops in the middle.
func TestDeliverOnceByManyServers(t *testing.T) {
	w := newWorld(t, 3)
	want := map[string]bool{}
	for range 60 {
		want[w.emit("zhang-san", "pushbot", "group:42").ID] = true
	}
	for range 60 {
		g := <-w.pushed
		require.True(t, want[g.ID], "twice: %s", g.ID)
		delete(want, g.ID)
	}
	w.stop()
	<-w.stopped
	require.EqualValues(t, 60, w.pushes.Load())
	require.Empty(t, outbox(t, w.store))
}

// A push for an app that has no webhook on this node waits, harms nobody, and can still be polled.
func TestDeliverWithoutTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		az, mem, d, p := pushing(t, 2, time.Minute, nil)
		delete(d.Targets, "app0")
		push(t, az, "app0", "m1")
		good := push(t, az, "app1", "m2")
		defer background(t, d.Run)()
		synctest.Wait()
		require.Len(t, p.tried()[good.ID], 1)
		require.Len(t, p.tried(), 1)
		require.Len(t, outbox(t, mem), 1)
		time.Sleep(2 * time.Minute)
		require.Empty(t, outbox(t, mem))
	})
}

// Nobody is pushed to whose address is not for the public, unless the host is allowed by name.
func TestDeliverToPrivateAddresses(t *testing.T) {
	var connections atomic.Int64
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	hook := &http.Server{Handler: http.NotFoundHandler(), ConnState: func(net.Conn, http.ConnState) { connections.Add(1) }}
	go func() { _ = hook.Serve(listener) }()
	defer hook.Close()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	require.NoError(t, err)
	config := func(url string, allow ...string) authz.Config {
		return authz.Config{Issuer: "https://social.example", Permit: func(context.Context, grant.Access) error { return nil }, AllowWebhooksTo: allow,
			Apps: []authz.App{{ID: "bot", Secret: grant.NewSecret("long enough"), Webhook: url, Actions: []string{"message.write"}}}}
	}
	for _, url := range []string{
		"http://127.0.0.1:" + port, "https://127.0.0.1:" + port, "https://[::1]:" + port, "https://[::ffff:127.0.0.1]:" + port, "http://localhost:" + port, "https://10.0.0.1/", "https://169.254.169.254/latest",
		"https://100.64.0.1/", "https://[fd00::1]/", "https://0.0.0.0:" + port, "https://user:pass@public.example/", "http://public.example/", "ftp://public.example/", "https://public.example:22/", "https:///", "nonsense",
	} {
		_, err := authz.New(config(url))
		require.ErrorContains(t, err, "bot", url)
		require.ErrorContains(t, err, "Webhook", url)
	}
	_, err = authz.New(config("http://127.0.0.1:"+port, "127.0.0.1:"+port))
	require.NoError(t, err)
	_, err = authz.New(config("http://127.0.0.1:"+port, "127.0.0.1:1"))
	require.Error(t, err)

	// A name is judged when it is dialled.
	for _, host := range []string{"localhost", "LOCALHOST.", "a.localhost"} {
		s, attempts := authztestServer(t, "https://"+host+":"+port+"/hook")
		s.MustEmit(grant.Event{ID: "m1", Operation: grant.Mention, Account: "zhang-san", App: "bot", Domain: scope.MustDomain("group:42")})
		e := <-attempts
		require.Equal(t, []string{"undelivered", "no answer"}, []string{e.What, e.Reason}, host)
	}
	require.Zero(t, connections.Load())
	s, attempts := authztestServer(t, "http://localhost:"+port+"/hook", "localhost")
	s.MustEmit(grant.Event{ID: "m1", Operation: grant.Mention, Account: "zhang-san", App: "bot", Domain: scope.MustDomain("group:42")})
	require.Equal(t, "status 404", (<-attempts).Reason)
	require.NotZero(t, connections.Load())
}

func authztestServer(t *testing.T, hook string, allow ...string) (*authztest.Server, chan grant.Entry) {
	attempts := make(chan grant.Entry, 100)
	return authztest.New(t, authz.Config{
		Apps:     []authz.App{{ID: "bot", Actions: []string{"message.write"}, Webhook: hook}},
		Triggers: []grant.Trigger{{App: "bot", On: grant.Mention, In: "*", Allow: []string{"message.write"}}},
		Observe: func(_ context.Context, e grant.Entry) {
			if strings.HasSuffix(e.What, "delivered") {
				attempts <- e
			}
		},
		AllowWebhooksTo: allow,
	}), attempts
}

// Run, with deliveries and long polls that hang, leaves no goroutine behind.
func TestRunLeavesNothingBehind(t *testing.T) {
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	before := runtime.NumGoroutine()
	polling, hung := make(chan struct{}, 100), make(chan struct{}, 100)
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		hung <- struct{}{}
		<-r.Context().Done()
	}))
	az, err := authz.New(authz.Config{
		Issuer: "https://social.example", Permit: func(context.Context, grant.Access) error { return nil },
		Apps:            []authz.App{{ID: "bot", Secret: grant.NewSecret("long enough"), Actions: []string{"message.write"}, Webhook: hook.URL}, {ID: "polls", Secret: grant.NewSecret("long enough")}},
		Triggers:        []grant.Trigger{{App: "bot", On: grant.Mention, In: "*", Allow: []string{"message.write"}}},
		AllowWebhooksTo: []string{"127.0.0.1"},
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	mux := http.NewServeMux()
	az.Routes(func(pattern string, h http.Handler) {
		mux.HandleFunc(pattern, func(rw http.ResponseWriter, r *http.Request) {
			polling <- struct{}{}
			h.ServeHTTP(rw, r)
		})
	})
	web := httptest.NewUnstartedServer(mux)
	web.Config.BaseContext = func(net.Listener) context.Context { return ctx } // as the docs of GrantsEndpoint say
	web.Start()
	ended := make(chan error)
	go func() { ended <- az.Run(ctx) }()
	client := &http.Client{Transport: &http.Transport{}}
	var polls sync.WaitGroup
	for range 5 {
		polls.Go(func() {
			req, err := http.NewRequest("GET", web.URL+"/oauth2/grants?wait=30s", nil)
			if err != nil {
				t.Error(err)
			}
			req.SetBasicAuth("polls", "long enough")
			res, err := client.Do(req)
			if err == nil {
				res.Body.Close()
			}
		})
		<-polling
	}
	for n := range 10 {
		push(t, az, "bot", strconv.Itoa(n))
	}
	for range 4 {
		<-hung
	}
	cancel()
	require.NoError(t, <-ended)
	polls.Wait()
	web.Close()
	hook.Close()
	client.CloseIdleConnections()
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before+1 }, 10*time.Second, 5*time.Millisecond, "before: %d", before) // one is Eventually's
}
