package authz

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/behest-go/behest/authz/webhook"
	"github.com/behest-go/behest/grant"
)

// A Target is where an app's grants are pushed to, and with which keys they are signed.
type Target struct {
	URL  string
	Keys []webhook.Key
}

const (
	// An app that hangs holds few of the places, so that it never delays another; and one of them when most are
	// taken. So it takes 128 that hang with all they may to fill the first half, and 512 more to fill the second.
	deliveriesPerApp = 4
	deliveriesCrowd  = 512
	deliveriesInAll  = 1024             // a bound on sockets
	deliveryLease    = 30 * time.Second // longer than an attempt takes
	// stopGrace is what attempts under way are given to end by themselves when Run is to end.
	stopGrace      = 2 * time.Second
	firstBackOff   = 500 * time.Millisecond
	longestBackOff = 15 * time.Second
	lastMoments    = 2 * time.Second // of a code, when even an app is tried that wants to be left alone
	lookInterval   = 250 * time.Millisecond
)

var errNoTarget = errors.New("authz: the app has no webhook")

// A Deliverer pushes grants to apps by webhook: at least once, until the app answers with a 2xx, redeems the code, or
// the code's time is over. Whatever else the app answers, a redirect or a 410 as well, is tried again, with longer
// and longer pauses up to 15 s, and shorter ones towards the end; the webhook-id is the grant's ID, the same at each
// try. An app that answers 429 or 503 with a Retry-After is left alone for that long, but for the last moments of the
// code. An attempt that takes longer than half of what is left of the code's time is broken off.
type Deliverer struct {
	Engine  *grant.Engine     // required
	Targets map[string]Target // by app; a push for any other app waits for its end
	// Follow returns the Targets at each attempt, for those that change. Nil: Targets, which do not.
	Follow func(context.Context) (map[string]Target, error)
	// Post sends one attempt, which it bounds in time (less than 30 s) and in what it reads, and returns the status,
	// and for how long the app asks to be left alone (zero: it does not). It must refuse addresses that are not for
	// the public: the URLs are the apps'. Required.
	Post func(ctx context.Context, url string, header http.Header, body []byte) (status int, retryAfter time.Duration, err error)
	// Wait returns a channel that is closed when there may be something new for the app (empty: for any), and for how
	// long to wait before looking all the same; what the Deliverer itself has put off it remembers. Nil: look every
	// 250 ms only.
	Wait    func(app string) (news <-chan struct{}, look time.Duration)
	Observe func(context.Context, grant.Entry) // told of each attempt: What is "delivered" or "undelivered", Count the number of the try; nil: nobody
	Now     func() time.Time                   // nil: time.Now
	Log     *slog.Logger                       // nil: nowhere
}

// Run delivers until ctx is done and the attempts under way have ended: those that take longer than two seconds more
// are broken off, and are due at once for who delivers next. Several may run over one store: leases keep them apart.
func (d *Deliverer) Run(ctx context.Context) {
	var (
		wg    sync.WaitGroup
		ended = make(chan outcome, deliveriesInAll)
		busy  = map[string]int{} // by app
		total = 0
		later moments // when what was put off is due
		away  = &outage{what: "deliveries", log: d.log()}
	)
	attempts, breakOff := context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		late := time.AfterFunc(stopGrace, breakOff)
		wg.Wait()
		late.Stop()
		breakOff()
	}()
	end := func(o outcome) {
		total--
		if busy[o.app]--; busy[o.app] == 0 {
			delete(busy, o.app)
		}
		if !o.again.IsZero() {
			later.add(o.again)
		}
	}
	for ctx.Err() == nil {
		for range len(ended) { // before looking: who is done is not busy
			end(<-ended)
		}
		news, pause := (<-chan struct{})(nil), lookInterval
		if d.Wait != nil {
			news, pause = d.Wait("") // before looking, so that nothing slips between
		}
		pause = later.next(d.now(), pause)
		more := false
		if total < deliveriesInAll {
			share := deliveriesPerApp
			if total >= deliveriesCrowd {
				share = 1
			}
			var full []string
			for app, n := range busy {
				if n >= share {
					full = append(full, app)
				}
			}
			// Few at a time: one claim may overfill an app by less than its share.
			n := min(share, deliveriesInAll-total)
			within, cancel := context.WithTimeout(ctx, storeTimeout)
			grants, err := d.Engine.Claim(within, grant.Push, "", full, n, deliveryLease)
			cancel()
			if err != nil {
				pause = min(pause, lookInterval)
			}
			if ctx.Err() == nil {
				away.note(ctx, err)
			}
			for _, g := range grants {
				busy[g.App]++
				total++
				wg.Go(func() {
					ended <- outcome{g.App, d.attempt(attempts, g, away)}
				})
			}
			more = len(grants) == n
		}
		if more {
			continue
		}
		look := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case o := <-ended:
			end(o)
		case <-look.C:
		case <-news:
		}
		look.Stop()
	}
}

// An outcome is whose attempt has ended, and when the next is due; zero if none is.
type outcome struct {
	app   string
	again time.Time
}

// attempt returns when the next one is due.
func (d *Deliverer) attempt(ctx context.Context, g grant.Grant, away *outage) (again time.Time) {
	now := d.now()
	// Nothing goes on when another may have it.
	leased, end := context.WithTimeout(ctx, g.Leased.Sub(now))
	defer end()
	status, retryAfter, err := d.post(leased, &g, now)
	// What is known now must be written, also when the server stops.
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	entry := grant.Entry{At: now, Account: g.Account, App: g.App, Grant: g.ID, Scope: g.Scope().String(), Count: g.Tries + 1}
	if err == nil && status/100 == 2 {
		entry.What = "delivered"
		err = d.Engine.Delivered(after, g)
	} else {
		entry.What, entry.Reason = "undelivered", "no answer"
		if err == nil {
			entry.Reason = "status " + strconv.Itoa(status)
		}
		if ctx.Err() == nil {
			d.log().Warn("delivery", "app", g.App, "grant", g.ID, "try", g.Tries+1, "status", status, "err", err)
		}
		if status != http.StatusTooManyRequests && status != http.StatusServiceUnavailable {
			retryAfter = 0
		}
		again = d.again(ctx, &g, retryAfter)
		err = d.Engine.Postpone(after, g, again)
	}
	if err != nil {
		away.note(ctx, fmt.Errorf("app %s, grant %s: %w", g.App, g.ID, err))
		again = g.Leased // it comes again when the lease is over
	}
	if d.Observe != nil {
		d.Observe(after, entry)
	}
	return again
}

// again is when to try next: soon at first, later and later, and sooner and sooner again towards the end of the code.
// An app that asked to be left alone is, as long as a try is left.
func (d *Deliverer) again(ctx context.Context, g *grant.Grant, retryAfter time.Duration) time.Time {
	now := d.now()
	if ctx.Err() != nil {
		return now // broken off: for another server, or the next start
	}
	pause := min(firstBackOff<<min(g.Tries, 10), longestBackOff)
	left := g.RedeemBy.Sub(now)
	most := left / 2
	if retryAfter > 0 {
		pause = max(pause, retryAfter)
		most = left - min(left/4, lastMoments)
	}
	pause += time.Duration(rand.Int64N(int64(pause)/4 + 1)) // so that what failed together does not come back together
	return now.Add(max(min(pause, most), lookInterval))
}

// push is the body of a webhook, in the form of Standard Webhooks.
type push struct {
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"`
	Data      *handover `json:"data"`
}

func (d *Deliverer) post(ctx context.Context, g *grant.Grant, now time.Time) (status int, retryAfter time.Duration, err error) {
	targets := d.Targets
	if d.Follow != nil {
		if targets, err = d.Follow(ctx); err != nil {
			return 0, 0, err
		}
	}
	target, ok := targets[g.App]
	if !ok {
		return 0, 0, errNoTarget
	}
	body, err := json.Marshal(push{"grant.issued", g.IssuedAt.UTC(), handoverOf(d.Engine, g)})
	if err != nil {
		return 0, 0, err
	}
	header := http.Header{"Content-Type": {"application/json"}}
	if err := webhook.Sign(header, g.ID, now, body, target.Keys...); err != nil {
		return 0, 0, err
	}
	return d.Post(ctx, target.URL, header, body)
}

func (d *Deliverer) now() time.Time {
	if d.Now == nil {
		return time.Now()
	}
	return d.Now()
}

func (d *Deliverer) log() *slog.Logger {
	if d.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return d.Log
}
