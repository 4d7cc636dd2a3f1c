package authz

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	outageGap    = time.Second      // between two lines at least
	outageRemind = 10 * time.Second // between lines while it lasts
)

// An outage tells the log of a fault that lasts when it begins, every ten seconds, and when it is over: a store that
// is away for an hour does not fill the disk with one and the same line. Never more than one line a second.
type outage struct {
	what string
	log  *slog.Logger

	mu    sync.Mutex
	n     int       // faults since it began; 0: there is none
	since time.Time // when it began
	said  time.Time // when the log last heard of it
	quiet int       // faults of which it has not
}

// note is told of each try: nil is a success.
func (o *outage) note(ctx context.Context, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now() // also beside a clock that a test holds
	soon := now.Sub(o.said) < outageGap && !now.Before(o.said)
	switch {
	case err == nil && o.n == 0:
	case err == nil && soon: // it may not be over yet: what fails again is the same outage
	case err == nil:
		o.log.LogAttrs(ctx, slog.LevelInfo, o.what+": well again", slog.Int("faults", o.n), slog.Duration("after", now.Sub(o.since)))
		o.n, o.quiet, o.said = 0, 0, now
	default:
		if o.n++; o.n == 1 {
			o.since = now
		}
		o.quiet++
		if soon || o.n > 1 && now.Sub(o.said) < outageRemind && !now.Before(o.said) && !o.said.Before(o.since) {
			return
		}
		o.log.LogAttrs(ctx, slog.LevelError, o.what, slog.Any("err", err), slog.Int("faults", o.quiet))
		o.quiet, o.said = 0, now
	}
}
