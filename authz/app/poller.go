package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"
)

const (
	backoffFirst = 500 * time.Millisecond
	backoffMost  = 30 * time.Second
	idleLeast    = time.Second // between polls that bring nothing new
)

// A Poller fetches the app's grants and hands each to Handle, for apps that no webhook can reach. One Poller is
// enough; several share the grants. Set its fields before Run.
type Poller struct {
	// Client is who fetches. Required.
	Client *Client
	// Handle takes a grant. Required. If it returns an error or panics, the grant comes again some 10 seconds later,
	// until it is redeemed or too late; if it returns nil, it does not come again. Its context ends with Run's.
	Handle func(context.Context, Grant) error
	// Wait is how long one poll waits for a grant, at most 30 seconds. Zero: 25 seconds.
	Wait time.Duration
	// Parallel is how many Handles may run at once. While so many run, nothing is fetched. Zero: 4.
	Parallel int
	// Log gets failed polls and Handle's errors and panics. Nil: slog.Default().
	Log *slog.Logger
}

// Run polls until ctx ends; it returns ctx's error, when the last Handle has returned. Before that it returns only if
// a required field is missing, or the server says that it does not take the client's credentials (the [*Error] of
// "invalid_client" or "unauthorized_client"). Of other failures it keeps trying, at random intervals that grow to 30
// seconds, or later if the server asks for it.
func (p *Poller) Run(ctx context.Context) error {
	switch {
	case p.Client == nil || p.Handle == nil:
		return errors.New("app: a Poller needs Client and Handle")
	case p.Wait < 0 || p.Wait > maxWait:
		return fmt.Errorf("app: Poller.Wait %v is not within 0 and %v", p.Wait, maxWait)
	case p.Parallel < 0:
		return errors.New("app: Poller.Parallel is negative")
	}
	if err := p.Client.check(); err != nil {
		return err
	}
	wait, parallel := p.Wait, p.Parallel
	if wait == 0 {
		wait = 25 * time.Second
	}
	if parallel == 0 {
		parallel = 4
	}
	ctx, cancel := context.WithCancel(ctx)
	var (
		memory  memory
		handles sync.WaitGroup
		slots   = make(chan struct{}, parallel)
	)
	defer handles.Wait()
	defer cancel() // first, so that Handle knows

	log := logger(p.Log)
	for failed := 0; ; {
		// A slot before the poll: what is fetched and not handled would only wear out its clock.
		select {
		case slots <- struct{}{}:
			<-slots
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		began := time.Now()
		grants, err := p.Client.Grants(ctx, wait)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		fresh := 0
		for _, grant := range grants {
			entry, mine := memory.begin(grant.ID, time.Now())
			if !mine {
				continue
			}
			fresh++
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				memory.end(entry, false, time.Now(), time.Time{}, defaultRemember)
				return ctx.Err()
			}
			handles.Go(func() {
				ok := false
				defer func() {
					now := time.Now()
					memory.end(entry, ok, now, rememberUntil(now, grant.RedeemBy), defaultRemember)
					<-slots
				}()
				ok = p.handle(ctx, log, grant)
			})
		}
		if err != nil {
			var refused *Error
			if errors.As(err, &refused) && (refused.Code == "invalid_client" || refused.Code == "unauthorized_client") {
				return err
			}
			failed++
			log.WarnContext(ctx, "poll failed", "err", err, "times", failed)
			pause := backoff(failed)
			if refused != nil {
				pause = max(pause, refused.RetryAfter)
			}
			sleep(ctx, pause)
			continue
		}
		failed = 0
		// A server or a proxy that answers at once is not to be asked in a loop.
		if took := time.Since(began); fresh == 0 && took < idleLeast {
			sleep(ctx, idleLeast-took+rand.N(idleLeast/4))
		}
	}
}

func (p *Poller) handle(ctx context.Context, log *slog.Logger, grant Grant) (ok bool) {
	defer func() {
		// Here no net/http stands between a panic and the end of the process with all its other grants.
		if v := recover(); v != nil {
			log.ErrorContext(ctx, "grant not handled: panic", "grant", grant.ID, "panic", v, "stack", string(debug.Stack()))
			ok = false
		}
	}()
	if err := p.Handle(ctx, grant); err != nil {
		log.ErrorContext(ctx, "grant not handled", "grant", grant.ID, "err", err)
		return false
	}
	return true
}

// backoff is half fixed and half random: it grows, and many apps do not come at the same moment.
func backoff(failed int) time.Duration {
	d := backoffMost
	if failed < 7 {
		d = min(backoffFirst<<(failed-1), backoffMost)
	}
	return d/2 + rand.N(d/2)
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
