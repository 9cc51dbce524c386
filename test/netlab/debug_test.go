package netlab

import "context"

func (s *story) dump() {
	for _, m := range []string{"router", "node1", "node2"} {
		for _, c := range [][]string{{"ip", "route"}, {"ip", "neigh"}, {"ip", "-6", "neigh"}, {"bridge", "fdb"}, {"conntrack", "-L"}, {"ip", "route", "get", "10.244.2.2"},{"ip", "-br","a"}} {
			out, err := s.Output(context.Background(), m, c...)
			s.t.Logf("%s %v: %v\n%s", m, c, err, out)
		}
	}
}
