"""The team: a pool of OpenMP threads, whose members take items of calls if they get a processor.

A call publishes its items in a slot and works through them itself, while members of the team take items, too. It
returns when the last item is done. It waits for members that are inside an item, never for one that has not started:
when other processes use the processors, a call is as fast as on one thread, while a parallel region would wait for all
of its threads. The members live in one parallel region, entered once by a thread of the library's own; after work they
spin for a moment, then sleep.

fastattn._runtime documents where the number of threads comes from; sync.h wraps the system's primitives.
"""

import warnings

from cython.parallel cimport parallel
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from fastattn._core.targets cimport scratch

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #define FA_OPENMP _OPENMP
    #else
    #define FA_OPENMP 0
    static int omp_get_max_threads(void) { return 1; }
    static int omp_get_num_threads(void) { return 1; }
    static int omp_get_level(void) { return 1; } /* as if inside a region: calls stay on their threads */
    static int omp_get_max_active_levels(void) { return 1; }
    #endif
    /* OpenMP 5.0 lets a program release its threads; older versions cannot. */
    static void fa_rest(void) {
    #if FA_OPENMP >= 201811 || (defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 9 && FA_OPENMP)
        extern int omp_pause_resource_all(omp_pause_resource_t);
        omp_pause_resource_all(omp_pause_soft);
    #endif
    }
    """
    const int FA_OPENMP
    int omp_get_max_threads() nogil
    int omp_get_num_threads() nogil
    int omp_get_level() nogil
    int omp_get_max_active_levels() nogil
    void fa_rest()

cdef extern from "pythread.h" nogil:
    unsigned long PyThread_start_new_thread(void (*function)(void *) noexcept nogil, void *argument)
    unsigned long PYTHREAD_INVALID_THREAD_ID

cdef extern from "Python.h" nogil:
    int Py_AddPendingCall(int (*function)(void *) noexcept nogil, void *argument)

cdef extern from "sync.h" nogil:
    ctypedef struct fa_processors:
        pass
    int load "fa_load"(int *place)
    uint64_t load_word "fa_load"(uint64_t *place)
    void store "fa_store"(int *place, int value)
    void store_word "fa_store"(uint64_t *place, uint64_t value)
    int add "fa_add"(int *place, int value)
    uint64_t set_bits "fa_set_bits"(uint64_t *place, uint64_t bits)
    uint64_t clear_bits "fa_clear_bits"(uint64_t *place, uint64_t bits)
    bint replace "fa_replace"(int *place, int *expected, int value)
    bint replace_word "fa_replace"(uint64_t *place, uint64_t *expected, uint64_t value)
    void fence "fa_fence"()
    int64_t peek "fa_peek"(int64_t *place)
    void put "fa_put"(int64_t *place, int64_t value)
    int peek_int "fa_peek"(int *place)
    void put_int "fa_put"(int *place, int value)
    int lowest_bit "fa_lowest_bit"(uint64_t bits)
    int count_bits "__builtin_popcountll"(uint64_t bits)
    void pause "fa_pause"()
    void sleep_while "fa_sleep"(int *word, int expected)
    void wake "fa_wake"(int *word, int count)
    int64_t now "fa_now"()
    int processor "fa_processor"()
    int thread_id "fa_thread_id"()
    int allowed "fa_allowed"(fa_processors *processors)  # to the process
    void allow "fa_allow"(int thread_id, const fa_processors *processors)
    bint same_processors "fa_same_processors"(const fa_processors *a, const fa_processors *b)
    void block_signals "fa_block_signals"()
    int grantable "fa_grantable"(int count, size_t least, size_t stack)
    void at_fork "fa_at_fork"(void (*before)() noexcept nogil, void (*parent)() noexcept nogil,
                              void (*child)() noexcept nogil)

cdef enum:
    SLOTS = 64              # maximum number of calls that share items at the same time; any further one works alone
    MOST_MEMBERS = 1023
    MOST_BATCHES = 0x3FFFF          # what 18 bits of a ticket count
    MOST_GENERATIONS = 0xFFFFFFF
    STACK = 128 << 10       # minimum stack size of a member in bytes; kernels use up to 20 KB
    NOT_STARTED = 0         # states of the team
    STARTED = 1
    REFUSED = 2             # no thread could be started
    MOST_TRUST = 8          # trust that the next call comes while a member spins: +1 if it does, -2 if not
    PAUSES = 16             # between two readings of the clock: about a microsecond

# All in nanoseconds. Below the first three, a call stays on the calling thread. (A member that is awake takes an item
# within 1 microsecond.)
cdef double GRAIN = 3000.0         # minimum work per thread
cdef double WAKING = 15000.0       # minimum work to wake a member, which takes 40 microseconds
cdef double WAKING_FOR_ONE = 60000.0  # the same for a call that does not follow another one soon
cdef int64_t SOON = 1000000        # maximum interval between calls of which more are likely to follow
cdef int64_t SPIN = 100000         # for which a member waits for the next call before it sleeps
cdef int64_t LONGEST_SPIN = 1000000  # the same, including the time that running calls take to end
cdef int64_t STOLEN = 50000        # a gap between two readings of the clock: another process had the processor
cdef int64_t PATIENCE = 200000     # maximum time that a call spins while others finish their last items
cdef int64_t LOOKING = 2000000     # interval between checks of the process's affinity
cdef int64_t LONGEST_ALONE = 250000000
cdef int64_t LONGEST_CHANGE = 1000000000  # maximum time that a fork waits for threads being started
cdef int64_t MOST_BALANCE = 10000000  # maximum balance of time saved against time waited
cdef int WAIT_WEIGHT = 2           # weight of time waited in the balance: one call bears it all
cdef int PENALTY = 8               # ratio of the time that calls work alone to the last wait


cdef struct Slot:
    uint64_t ticket                # generation << 36 | first << 18 | end of the batches that are not taken yet
    uint64_t seats                 # generation << 36 | members that may still join
    Item item
    const void *plan
    ptrdiff_t count, length, batches  # number of items, of items in a batch, of batches
    int64_t scratch_size
    int64_t processor              # the caller's
    char[64] padding
    int done                       # number of batches that members have finished
    int asleep                     # whether the caller sleeps until `done` changes
    char[56] padding_2


cdef struct Team:
    uint64_t taken                 # bit n: slot n belongs to a call
    char[64] padding
    int calls                      # counts published calls; members sleep until it changes
    int asleep                     # number of sleeping members
    char[64] padding_2
    int state
    int wanted                     # number of members that should be in the region
    int entered                    # number of members in the region
    int changing                   # 1 while threads are started
    int looking                    # 1 while a call looks at the process's affinity
    int64_t last_call, looked, alone_until, penalty, balance
    int[MOST_MEMBERS] thread_ids   # 0: no such member
    # Kept in a forked child:
    size_t stack                   # stack size in bytes that OpenMP is set to; 0: not set
    bint following                 # whether members follow the process's affinity: OpenMP does not bind its threads
    int at_import                  # number of processors allowed at import
    int processors                 # and now; 0: unknown
    fa_processors allowed          # what the members were told last; for the call that is looking

cdef Slot[SLOTS] slots
cdef Team team

openmp = FA_OPENMP  # the date of the OpenMP version, yyyymm; 0 in a serial build
openmp_address = <size_t><void *>&omp_get_max_threads  # in which library this is, the dynamic linker has decided
cdef int chosen = 0     # by set_num_threads or FASTATTN_NUM_THREADS; 0: not set
cdef int quota = 0      # the container's CPU quota, in processors; 0: no limit
cdef int default_threads = omp_get_max_threads()


# --- how many threads a call gets ---

cdef int available() noexcept nogil:
    """The default maximum. Read at each call: omp_set_num_threads, threadpoolctl or the affinity may have changed."""
    cdef int own = peek_int(&chosen), limit = peek_int(&quota), processors = peek_int(&team.processors)
    cdef int count = omp_get_max_threads()
    if own:
        return own
    if processors and count == default_threads and team.at_import == default_threads:
        count = processors
    return min(count, limit) if limit else count


cdef int threads_for(int asked, ptrdiff_t items, double nanoseconds) noexcept nogil:
    """Number of threads for `items` items that take `nanoseconds` in total; `asked` is the caller's limit or 0."""
    cdef ptrdiff_t count
    cdef int64_t time, last
    if items < 2 or nanoseconds < 2 * GRAIN:
        return 1
    time, last = now(), peek(&team.last_call)
    put(&team.last_call, time)
    if time - peek(&team.looked) > LOOKING:
        look_at_processors(time)
    count = asked if asked else available()
    count = min(count, items, <ptrdiff_t>(nanoseconds / GRAIN), 1 + MOST_MEMBERS)
    count -= count_bits(load_word(&team.taken))  # other calls, whose threads are busy
    if count < 2 or omp_get_level() >= omp_get_max_active_levels() or time < peek(&team.alone_until):
        return 1
    if load(&team.asleep) >= load(&team.entered) and nanoseconds < (WAKING if time - last < SOON else WAKING_FOR_ONE):
        return 1
    return <int>count if may_share(<int>count - 1) else 1


cdef void look_at_processors(int64_t time) noexcept nogil:
    """Apply the process's affinity to the members when it has changed; one call at a time does so."""
    cdef fa_processors processors
    cdef int free = 0, count, thread, i
    if not replace(&team.looking, &free, 1):
        return
    put(&team.looked, time)
    if team.following:
        count = allowed(&processors)
        put_int(&team.processors, count)
        if count and not same_processors(&processors, &team.allowed):
            team.allowed = processors
            for i in range(MOST_MEMBERS):
                thread = load(&team.thread_ids[i])
                if thread:
                    allow(thread, &processors)
    store(&team.looking, 0)


cdef void follow(int thread) noexcept nogil:
    """Apply the process's affinity to a new member; again if it changed meanwhile: a call may have applied that."""
    cdef fa_processors before, processors
    cdef int count = allowed(&processors)
    while count:
        allow(thread, &processors)
        before = processors
        count = allowed(&processors)
        if same_processors(&before, &processors):
            return


# --- a call ---

cdef bint run(Item item, const void *plan, ptrdiff_t count, int threads, ptrdiff_t scratch_size) noexcept nogil:
    """Run the items 0 to count - 1 of a plan, the first ones on this thread. False if there is no scratch memory."""
    cdef void *memory = scratch(scratch_size)
    cdef Slot *slot = NULL
    cdef ptrdiff_t index
    if memory == NULL:
        return False
    set_before(memory, -1)
    if threads > 1 and count > 1:
        slot = take_slot()
    if slot != NULL:
        share(slot, item, plan, count, threads, scratch_size, memory)
    else:
        for index in range(count):
            item(plan, index, memory)
            set_before(memory, index)
    return True


cdef void set_before(void *memory, ptrdiff_t index) noexcept nogil:
    """Set the result of item_before, which is stored in front of the scratch memory."""
    (<ptrdiff_t *>memory)[-1] = index


cdef Slot *take_slot() noexcept nogil:
    cdef uint64_t taken = load_word(&team.taken)
    cdef int n
    while ~taken:
        n = lowest_bit(~taken)
        if replace_word(&team.taken, &taken, taken | <uint64_t>1 << n):
            return &slots[n]
    return NULL


cdef void share(Slot *slot, Item item, const void *plan, ptrdiff_t count, int threads, ptrdiff_t scratch_size,
                void *memory) noexcept nogil:
    """Publish the items, work through them along with members, and wait for the last one."""
    cdef uint64_t generation = publish(slot, item, plan, count, threads, scratch_size)
    cdef int64_t begun = now(), finished, waited = 0
    cdef ptrdiff_t batch
    cdef int others = <int>slot.batches, mine = 0
    while take_batch(slot, generation, True, &batch):
        run_batch(slot, batch, memory)
        mine += 1
    others -= mine
    finished = now()
    if load(&slot.done) != others:
        wait_for(slot, others, PATIENCE)
        waited = now() - finished
    record(others * ((finished - begun) // max(1, mine)), waited)
    clear_bits(&team.taken, <uint64_t>1 << (slot - slots))


cdef uint64_t publish(Slot *slot, Item item, const void *plan, ptrdiff_t count, int threads,
                      ptrdiff_t scratch_size) noexcept nogil:
    """Fill a slot; its ticket, written last, opens it to members. Returns the ticket's generation.

    A member of the last call may still read what is put here, and finds by the ticket that it is too late. All other
    fields are read by those alone who have taken a batch, for which this call waits.
    """
    cdef uint64_t generation = (load_word(&slot.ticket) >> 36) + 1 & MOST_GENERATIONS
    cdef int asleep
    slot.item, slot.plan, slot.count = item, plan, count
    slot.length = 1 + count // MOST_BATCHES
    slot.batches = (count + slot.length - 1) // slot.length
    fence()
    put(&slot.scratch_size, scratch_size)
    put(&slot.processor, processor())
    put_int(&slot.asleep, 0)
    store(&slot.done, 0)
    store_word(&slot.seats, generation << 36 | <uint64_t>(threads - 1))
    store_word(&slot.ticket, generation << 36 | <uint64_t>slot.batches)
    add(&team.calls, 1)
    asleep = load(&team.asleep)
    if asleep:
        wake(&team.calls, min(asleep, threads - 1))
    return generation


cdef bint take_batch(Slot *slot, uint64_t generation, bint caller, ptrdiff_t *batch) noexcept nogil:
    """Take a batch: the caller takes the first one left, members the last one. False if there is none.

    A thread so gets the same rows in successive calls, and finds them in its own cache.
    """
    cdef uint64_t ticket = load_word(&slot.ticket), first, end
    while ticket >> 36 == generation and left_of(ticket):
        first, end = ticket >> 18 & MOST_BATCHES, ticket & MOST_BATCHES
        batch[0] = first if caller else end - 1
        if replace_word(&slot.ticket, &ticket, ticket + (<uint64_t>1 << 18) if caller else ticket - 1):
            return True
    return False


cdef bint left_of(uint64_t ticket) noexcept nogil:
    """Whether batches are left."""
    return ticket >> 18 & MOST_BATCHES != ticket & MOST_BATCHES


cdef void run_batch(const Slot *slot, ptrdiff_t batch, void *memory) noexcept nogil:
    cdef ptrdiff_t first = batch * slot.length, index
    for index in range(first, min(first + slot.length, slot.count)):
        slot.item(slot.plan, index, memory)
        set_before(memory, index)


cdef void wait_for(Slot *slot, int others, int64_t patience) noexcept nogil:
    """Wait until members have finished `others` batches: first spin, then sleep, which yields the processor."""
    cdef int64_t start = now()
    cdef int done
    while now() - start < patience:
        for _ in range(PAUSES):
            pause()
            if load(&slot.done) == others:
                return
    store(&slot.asleep, 1)
    done = load(&slot.done)
    while done != others:
        sleep_while(&slot.done, done)
        done = load(&slot.done)


cdef void record(int64_t saved, int64_t waited) noexcept nogil:
    """Update the balance of sharing: the time that members saved against the time that the call waited for them.

    A member that loses its processor inside an item makes its call wait for milliseconds. When that exceeds what
    members have saved recently, calls do not share for a while, and longer if it happens again.
    """
    cdef int64_t balance = min(peek(&team.balance) + saved - WAIT_WEIGHT * waited, MOST_BALANCE), time, penalty
    if balance < 0:
        time, penalty, balance = now(), peek(&team.penalty), 0
        if time - peek(&team.alone_until) > 4 * penalty:
            penalty = 0
        penalty = min(max(PENALTY * waited, 2 * penalty), LONGEST_ALONE)
        put(&team.penalty, penalty)
        put(&team.alone_until, time + penalty)
    put(&team.balance, balance)


# --- the members ---

cdef void member(int wanted) noexcept nogil:
    """Help calls until more members are wanted than the region was made for."""
    cdef int calls, number = add(&team.entered, 1)
    cdef int thread = thread_id(), trust = MOST_TRUST
    store(&team.thread_ids[number - 1], thread)  # from here on, calls apply changes of the affinity
    if team.following:
        follow(thread)
    if number == omp_get_num_threads():
        store(&team.changing, 0)
    while load(&team.wanted) == wanted:
        calls = load(&team.calls)
        if not help_anybody(&trust):
            wait_for_call(calls, &trust)
    store(&team.thread_ids[number - 1], 0)


cdef bint help_anybody(int *trust) noexcept nogil:
    cdef uint64_t taken = load_word(&team.taken)
    cdef bint helped = False
    while taken:
        helped |= help(&slots[lowest_bit(taken)], trust)
        taken &= taken - 1
    return helped


cdef bint help(Slot *slot, int *trust) noexcept nogil:
    """Take items of a slot. Its fields are valid while items are left, and until every item taken is done."""
    cdef uint64_t ticket = load_word(&slot.ticket), generation = ticket >> 36
    cdef int64_t scratch_size = peek(&slot.scratch_size)
    cdef int64_t caller = peek(&slot.processor)
    cdef ptrdiff_t batch
    cdef void *memory
    cdef bint helped = False
    fence()
    ticket = load_word(&slot.ticket)
    if ticket >> 36 != generation or not left_of(ticket):
        return False
    if caller == processor() and caller >= 0:  # on the caller's processor, a member would delay the caller
        trust[0] = 0
        return False
    if not take_seat(slot, generation):
        return False
    memory = scratch(scratch_size)
    if memory == NULL:
        return False
    set_before(memory, -1)
    while take_batch(slot, generation, False, &batch):
        run_batch(slot, batch, memory)
        helped = True
        add(&slot.done, 1)
        if load(&slot.asleep):
            wake(&slot.done, 1)
    return helped


cdef bint take_seat(Slot *slot, uint64_t generation) noexcept nogil:
    cdef uint64_t seats = load_word(&slot.seats)
    while seats >> 36 == generation and <unsigned int>seats:
        if replace_word(&slot.seats, &seats, seats - 1):
            return True
    return False


cdef void wait_for_call(int calls, int *trust) noexcept nogil:
    """Wait until another call is published, or more members are wanted; spin first if that has mostly paid off.

    While a call finishes its last items, the next one cannot come yet: that time does not count as idle.
    """
    cdef int64_t start = now(), last = start, time = start, idle = start
    while trust[0] and time - idle < SPIN and time - start < LONGEST_SPIN:
        for _ in range(PAUSES):
            pause()
            if load(&team.calls) != calls:
                trust[0] = min(trust[0] + 1, MOST_TRUST)
                return
        time = now()
        if load_word(&team.taken):
            idle = time
        if time - last > STOLEN:
            trust[0] = 0
        last = time
    add(&team.asleep, 1)
    while load(&team.calls) == calls:
        sleep_while(&team.calls, calls)
    add(&team.asleep, -1)
    trust[0] = min(trust[0] + 1, MOST_TRUST) if now() - idle < SPIN else max(trust[0] - 2, 0)


# --- the region that the members live in ---

cdef bint may_share(int members) noexcept nogil:
    """Whether there is a team; start it, or enlarge it, if it is too small."""
    cdef int free = 0
    if load(&team.wanted) < members and load(&team.state) != REFUSED and replace(&team.changing, &free, 1):
        store(&team.wanted, members)
        if load(&team.state) == STARTED:
            add(&team.calls, 1)
            wake(&team.calls, MOST_MEMBERS)
        else:
            store(&team.state, STARTED)
            if PyThread_start_new_thread(host, NULL) == PYTHREAD_INVALID_THREAD_ID:
                refuse()
    return load(&team.state) == STARTED


cdef void host(void *_) noexcept nogil:
    """The library's own thread: enters a region, and a larger one when more members are wanted."""
    cdef int wanted, granted
    block_signals()
    while True:
        wanted = load(&team.wanted)
        granted = grantable(max(1, wanted - 1), STACK, team.stack)
        if granted == 0:
            refuse()
            return
        store(&team.entered, 0)
        enter(wanted, min(wanted, 1 + granted))


cdef void enter(int wanted, int threads) noexcept nogil:
    with parallel(num_threads=threads):
        member(wanted)


cdef void refuse() noexcept nogil:
    store(&team.state, REFUSED)
    store(&team.changing, 0)
    Py_AddPendingCall(warn, NULL)


cdef int warn(void *_) noexcept with gil:
    warnings.warn(f"fastattn: {team_state()}", RuntimeWarning, stacklevel=2)
    return 0


# --- forks ---

cdef void before_fork() noexcept nogil:
    """Wait while threads are being started: the child would wait for them forever."""
    cdef int free = 0
    cdef int64_t deadline = now() + LONGEST_CHANGE
    while not replace(&team.changing, &free, 1) and now() < deadline:
        free = 0
        pause()


cdef void in_parent() noexcept nogil:
    store(&team.changing, 0)


cdef bint has_small_stacks() noexcept nogil:
    return 0 < team.stack < STACK


cdef void in_child() noexcept nogil:
    """Reset the state: the team and other threads' calls exist only in the parent."""
    memset(slots, 0, sizeof(slots))
    memset(&team, 0, <char *>&team.stack - <char *>&team)
    if has_small_stacks():
        store(&team.state, REFUSED)


# --- for fastattn._runtime ---

def openmp_threads() -> int:
    return omp_get_max_threads()


def available_threads() -> int:
    return available()


def team_state() -> str:
    """The state of the team, for bug reports."""
    if load(&team.state) == REFUSED:
        return "no thread could be started, or none with enough stack: calls run on the calling thread"
    if load(&team.state) == NOT_STARTED:
        return "not started yet"
    return f"{load(&team.entered)} besides the calling thread"


def choose(int count, int container):
    """Set the number of threads that overrides OpenMP's own (0: none), and the container's limit (0: none)."""
    put_int(&chosen, count)
    put_int(&quota, container)


def bind(bint bound, size_t stack):
    """Set whether OpenMP binds its threads to processors, and the stack size that it is set to (0: not set)."""
    team.following, team.stack = not bound, stack
    if has_small_stacks():
        store(&team.state, REFUSED)


def rest():
    """Release the calling thread's own OpenMP threads: they do not survive a fork; the child would wait for them."""
    fa_rest()


team.at_import = allowed(&team.allowed)
at_fork(before_fork, in_parent, in_child)
