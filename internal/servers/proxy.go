package servers

import (
	"bytes"
	"context"
	"net"
	"sync"
	"testing"
	"time"
)

// A Fault is what a Proxy does to a request and its answer. Make it with Refuse, CutRequest, CutAnswer, Delay or Hang;
// the zero Fault does nothing.
type Fault struct {
	kind  int
	bytes int
	after time.Duration
}

const (
	faultNone = iota
	faultRequest
	faultAnswer
	faultDelay
	faultHang
)

// CutRequest ends the connection when n bytes of the request have been passed on: with 0 none.
func CutRequest(n int) Fault { return Fault{kind: faultRequest, bytes: n} }

// CutAnswer passes the request on and ends the connection when n bytes of the answer have been passed back: with 0 the
// server has answered and nobody hears it.
func CutAnswer(n int) Fault { return Fault{kind: faultAnswer, bytes: n} }

// Delay passes everything on, the answer later by d.
func Delay(d time.Duration) Fault { return Fault{kind: faultDelay, after: d} }

// Hang passes the request on and the answer never. The connection stays.
func Hang() Fault { return Fault{kind: faultHang} }

// A Proxy passes TCP connections on to a server, and harms requests when told to. A request is what a client sends
// until it is answered, as far as one read takes it: 64 KiB, in pieces of which the first is what counts. Make it with
// StartProxy; it is safe for concurrent use.
type Proxy struct {
	addr, to string
	mu       sync.Mutex
	always   Fault
	once     []planned
	harmed   Harm
	closed   bool          // takes no connections
	still    chan struct{} // nothing passes until it is closed; nil: all does
	conns    map[net.Conn]bool
}

type planned struct {
	marker string
	fault  Fault
}

// A Harm is what a Proxy has done so far.
type Harm struct {
	Requests        int // that were harmed
	Request, Answer int // bytes of the last one, and of its answer as far as it came with its first bytes
}

// StartProxy starts a proxy in front of the server at addr, until the test ends.
func StartProxy(tb testing.TB, addr string) *Proxy {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	p := &Proxy{addr: l.Addr().String(), to: addr, conns: make(map[net.Conn]bool)}
	ctx, stop := context.WithCancel(context.Background())
	var all sync.WaitGroup
	tb.Cleanup(func() {
		stop()
		_ = l.Close()
		p.Drop()
		all.Wait()
	})
	all.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { p.serve(ctx, in) })
		}
	})
	return p
}

// Addr is where clients find the proxy.
func (p *Proxy) Addr() string { return p.addr }

// Set harms every request from now on that no Once is for.
func (p *Proxy) Set(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.always = f
}

// Once harms the next request in which marker stands. It counts as harmed when that has happened.
func (p *Proxy) Once(marker string, f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.once = append(p.once, planned{marker, f})
}

// Harmed says what has been harmed.
func (p *Proxy) Harmed() Harm {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.harmed
}

// Refuse ends connections at once, those that are there and new ones, until it is told otherwise.
func (p *Proxy) Refuse(yes bool) {
	p.mu.Lock()
	p.closed = yes
	p.mu.Unlock()
	if yes {
		p.Drop()
	}
}

// Hold keeps back everything, in both directions, until it is told otherwise: a network that has gone and comes back.
func (p *Proxy) Hold(yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case yes && p.still == nil:
		p.still = make(chan struct{})
	case !yes && p.still != nil:
		close(p.still)
		p.still = nil
	}
}

// held waits while everything is kept back.
func (p *Proxy) held(ctx context.Context) {
	p.mu.Lock()
	still := p.still
	p.mu.Unlock()
	if still != nil {
		select {
		case <-still:
		case <-ctx.Done():
		}
	}
}

// Drop ends all connections that are there.
func (p *Proxy) Drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

// track takes a connection under Drop; the function it returns ends it.
func (p *Proxy) track(c net.Conn) (end func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[c] = true
	return func() {
		_ = c.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, c)
	}
}

// fault is what happens to this request.
func (p *Proxy) fault(request []byte) Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, o := range p.once {
		if bytes.Contains(request, []byte(o.marker)) {
			p.once = append(p.once[:i], p.once[i+1:]...)
			p.harmed = Harm{Requests: p.harmed.Requests + 1, Request: len(request)}
			return o.fault
		}
	}
	if p.always.kind != faultNone {
		p.harmed = Harm{Requests: p.harmed.Requests + 1, Request: len(request)}
	}
	return p.always
}

func (p *Proxy) serve(ctx context.Context, in net.Conn) {
	defer p.track(in)()
	p.mu.Lock()
	closed := p.closed
	p.mu.Unlock()
	if closed {
		return
	}
	out, err := new(net.Dialer).DialContext(ctx, "tcp", p.to)
	if err != nil {
		return
	}
	defer p.track(out)()
	var mu sync.Mutex
	var now Fault // what the next answer suffers
	var both sync.WaitGroup
	defer both.Wait()
	both.Go(func() {
		defer in.Close()
		buf := make([]byte, 1<<16)
		for {
			n, err := out.Read(buf)
			if err != nil {
				return
			}
			p.held(ctx)
			mu.Lock()
			f := now
			if f.kind != faultHang {
				now = Fault{}
			}
			mu.Unlock()
			if f.kind != faultNone {
				p.mu.Lock()
				p.harmed.Answer = n
				p.mu.Unlock()
			}
			switch f.kind {
			case faultHang:
				continue
			case faultDelay:
				wait, cancel := context.WithTimeout(ctx, f.after)
				<-wait.Done()
				cancel()
			case faultAnswer:
				if f.bytes < n {
					_, _ = in.Write(buf[:f.bytes])
					return
				}
			}
			if _, err := in.Write(buf[:n]); err != nil {
				return
			}
		}
	})
	defer out.Close()
	buf := make([]byte, 1<<16)
	for {
		n, err := in.Read(buf)
		if err != nil {
			return
		}
		p.held(ctx)
		f := p.fault(buf[:n])
		if f.kind == faultRequest {
			_, _ = out.Write(buf[:min(f.bytes, n)])
			return
		}
		mu.Lock()
		if now.kind != faultHang { // what hangs goes on hanging
			now = f
		}
		mu.Unlock()
		if _, err := out.Write(buf[:n]); err != nil {
			return
		}
	}
}
