package guard

import (
	"net/netip"
)

// A row is a range that no stranger's webhook may be in.
type row struct {
	prefix netip.Prefix
	what   string
}

func rows(list ...[2]string) []row {
	out := make([]row, len(list))
	for i, e := range list {
		out[i] = row{netip.MustParsePrefix(e[0]), e[1]}
	}
	return out
}

// The rows of the IANA IPv4 Special-Purpose Address Registry, the multicast space, and one address of a cloud.
var refused4 = rows(
	[2]string{"0.0.0.0/8", "this network (RFC 791)"},
	[2]string{"10.0.0.0/8", "private use (RFC 1918)"},
	[2]string{"100.64.0.0/10", "shared, carrier-grade NAT (RFC 6598)"},
	[2]string{"127.0.0.0/8", "loopback (RFC 1122)"},
	[2]string{"168.63.129.16/32", "the host's services on Azure"},
	[2]string{"169.254.0.0/16", "link-local, cloud metadata (RFC 3927)"},
	[2]string{"172.16.0.0/12", "private use (RFC 1918)"},
	[2]string{"192.0.0.0/24", "IETF protocol assignments (RFC 6890)"},
	[2]string{"192.0.2.0/24", "documentation (RFC 5737)"},
	[2]string{"192.31.196.0/24", "AS112 (RFC 7535)"},
	[2]string{"192.52.193.0/24", "automatic multicast tunneling (RFC 7450)"},
	[2]string{"192.88.99.0/24", "6to4 relay anycast (RFC 7526)"},
	[2]string{"192.168.0.0/16", "private use (RFC 1918)"},
	[2]string{"192.175.48.0/24", "AS112 (RFC 7534)"},
	[2]string{"198.18.0.0/15", "benchmarking (RFC 2544)"},
	[2]string{"198.51.100.0/24", "documentation (RFC 5737)"},
	[2]string{"203.0.113.0/24", "documentation (RFC 5737)"},
	[2]string{"224.0.0.0/4", "multicast (RFC 5771)"},
	[2]string{"255.255.255.255/32", "limited broadcast (RFC 8190)"}, // before the row that holds it
	[2]string{"240.0.0.0/4", "reserved (RFC 1112)"},
)

// The rows of the IANA IPv6 Special-Purpose Address Registry and the deprecated ranges. Whatever lies outside 2000::/3
// is refused in any case; the rows are there for the words.
var refused6 = rows(
	[2]string{"::/128", "unspecified (RFC 4291)"},
	[2]string{"::1/128", "loopback (RFC 4291)"},
	[2]string{"::/96", "IPv4-compatible (RFC 4291)"},
	[2]string{"::ffff:0:0:0/96", "IPv4-translated (RFC 7915)"},
	[2]string{"64:ff9b:1::/48", "local NAT64 (RFC 8215)"},
	[2]string{"100::/64", "discard-only (RFC 6666)"},
	[2]string{"100:0:0:1::/64", "dummy prefix (RFC 9780)"},
	[2]string{"2001::/32", "Teredo (RFC 4380)"}, // before the row that holds it
	[2]string{"2001:2::/48", "benchmarking (RFC 5180)"},
	[2]string{"2001:10::/28", "ORCHID (RFC 4843)"},
	[2]string{"2001:20::/28", "ORCHIDv2 (RFC 7343)"},
	[2]string{"2001:30::/28", "drone remote id (RFC 9374)"},
	[2]string{"2001::/23", "IETF protocol assignments (RFC 2928)"},
	[2]string{"2001:db8::/32", "documentation (RFC 3849)"},
	[2]string{"2002::/16", "6to4 (RFC 3056)"},
	[2]string{"2620:4f:8000::/48", "AS112 (RFC 7534)"},
	[2]string{"3ffe::/16", "6bone (RFC 3701)"},
	[2]string{"3fff::/20", "documentation (RFC 9637)"},
	[2]string{"5f00::/16", "segment routing (RFC 9602)"},
	[2]string{"fc00::/7", "unique local (RFC 4193)"},
	[2]string{"fe80::/10", "link-local (RFC 4291)"},
	[2]string{"fec0::/10", "site-local (RFC 3879)"},
	[2]string{"ff00::/8", "multicast (RFC 4291)"},
)

var (
	global6 = netip.MustParsePrefix("2000::/3")
	nat64   = netip.MustParsePrefix("64:ff9b::/96")
)

// addressError says which range it was and not which address: that would tell whoever sees it what a name of the
// operator's own network resolves to.
type addressError struct{ what string }

func (e *addressError) Error() string { return ErrAddress.Error() + ": " + e.what }
func (e *addressError) Unwrap() error { return ErrAddress }

// CheckAddr returns nil for a public unicast address, else an error that wraps [ErrAddress] and names the range.
// An IPv4 address in an IPv6 one (mapped, or behind the well-known NAT64 prefix) is judged as the IPv4 address;
// all of 6to4, Teredo and ISATAP, which lead to IPv4 addresses too, is refused.
func CheckAddr(addr netip.Addr) error {
	if !addr.IsValid() {
		return &addressError{"no address"}
	}
	if addr.Zone() != "" {
		return &addressError{"has a zone"} // and a prefix would never match it
	}
	addr = addr.Unmap()
	if addr.Is4() {
		return find(refused4, addr)
	}
	b := addr.As16()
	if nat64.Contains(addr) {
		return find(refused4, netip.AddrFrom4([4]byte(b[12:])))
	}
	if err := find(refused6, addr); err != nil {
		return err
	}
	if !global6.Contains(addr) {
		return &addressError{"not global unicast (RFC 4291)"}
	}
	if b[8]&^3 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe {
		return &addressError{"ISATAP (RFC 5214)"}
	}
	return nil
}

func find(table []row, addr netip.Addr) error {
	for i := range table {
		if table[i].prefix.Contains(addr) {
			return &addressError{table[i].what}
		}
	}
	return nil
}
