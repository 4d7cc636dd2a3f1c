package guard

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// last is the last address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Each row: its first and last address, in each disguise an IPv4 address has in IPv6.
func TestEveryRow(t *testing.T) {
	for _, r := range refused4 {
		require.Equal(t, r.prefix.Masked(), r.prefix, r.what)
		for _, a := range []netip.Addr{r.prefix.Addr(), last(r.prefix)} {
			if a == netip.MustParseAddr("255.255.255.255") && r.prefix.Bits() != 32 {
				continue // has a row of its own
			}
			v4 := a.As4()
			n64 := nat64.Addr().As16()
			copy(n64[12:], v4[:])
			for _, form := range []netip.Addr{a, netip.AddrFrom16(a.As16()), netip.AddrFrom16(n64)} {
				err := CheckAddr(form)
				require.ErrorIs(t, err, ErrAddress, "%v", form)
				require.ErrorContains(t, err, r.what, "%v", form)
			}
			// Where the IPv4 address is only a part of a way there, all of the range is refused.
			var six, tunnel, isatap, compat [16]byte
			copy(six[:], []byte{0x20, 0x02})
			copy(six[2:], v4[:])
			copy(tunnel[:], []byte{0x20, 0x01, 0, 0})
			binary.BigEndian.PutUint32(tunnel[12:], ^binary.BigEndian.Uint32(v4[:]))
			copy(isatap[:], []byte{0x26, 0x06, 0x47, 0, 0, 0, 0, 0, 2, 0, 0x5e, 0xfe})
			copy(isatap[12:], v4[:])
			copy(compat[12:], v4[:])
			for _, form := range [][16]byte{six, tunnel, isatap, compat} {
				require.ErrorIs(t, CheckAddr(netip.AddrFrom16(form)), ErrAddress, "%v", netip.AddrFrom16(form))
			}
		}
	}
	for _, r := range refused6 {
		require.Equal(t, r.prefix.Masked(), r.prefix, r.what)
		for _, a := range []netip.Addr{r.prefix.Addr(), last(r.prefix)} {
			require.ErrorIs(t, CheckAddr(a), ErrAddress, "%v", a)
			require.ErrorIs(t, CheckAddr(a.WithZone("eth0")), ErrAddress, "%v", a)
		}
		// The words are those of the row itself somewhere in it: no row is hidden by one before it.
		require.ErrorContains(t, CheckAddr(last(r.prefix)), r.what)
	}
}

// The addresses just outside the ranges that have public neighbours.
func TestPublicAddresses(t *testing.T) {
	for _, text := range []string{
		"1.0.0.0", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
		"168.63.129.15", "168.63.129.17", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "192.0.1.0",
		"192.0.3.0", "192.88.98.255", "192.88.100.0", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0",
		"198.51.99.255", "198.51.101.0", "203.0.112.255", "203.0.114.0", "223.255.255.255", "8.8.8.8",
		"::ffff:8.8.8.8", "64:ff9b::8.8.8.8",
		"2001:200::", "2001:db7:ffff::1", "2001:db9::1", "2003::1", "2606:4700::1111", "2a00:1450::1", "3ffd::1", "3ffe:ffff::1",
	} {
		err := CheckAddr(netip.MustParseAddr(text))
		if text == "3ffe:ffff::1" {
			require.ErrorIs(t, err, ErrAddress, text) // the last of 6bone
			continue
		}
		require.NoError(t, err, text)
	}
	for _, text := range []string{"::2:0:0:1", "1::1", "1fff:ffff::1", "4000::1", "8000::1", "fe00::1", "64:ff9b:0:1::1", "200::1"} {
		require.ErrorIs(t, CheckAddr(netip.MustParseAddr(text)), ErrAddress, text)
	}
	require.ErrorIs(t, CheckAddr(netip.Addr{}), ErrAddress)
}

// What net/netip knows to be special is refused, whatever the bytes.
func FuzzCheckAddr(f *testing.F) {
	f.Add([]byte{127, 0, 0, 1})
	f.Add([]byte{0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := netip.AddrFromSlice(b)
		if !ok {
			return
		}
		err := CheckAddr(a)
		u := a.Unmap()
		if u.IsPrivate() || u.IsLoopback() || u.IsMulticast() || u.IsLinkLocalUnicast() || u.IsUnspecified() || !u.IsGlobalUnicast() {
			require.ErrorIs(t, err, ErrAddress, "%v", a)
		}
		if a.Is4() {
			require.Equal(t, err == nil, CheckAddr(netip.AddrFrom16(a.As16())) == nil, "%v", a)
		}
	})
}

func BenchmarkCheckAddr(b *testing.B) {
	for _, text := range []string{"8.8.8.8", "2606:4700::1111"} {
		a := netip.MustParseAddr(text)
		b.Run(text, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if CheckAddr(a) != nil {
					b.Fatal()
				}
			}
		})
	}
}
