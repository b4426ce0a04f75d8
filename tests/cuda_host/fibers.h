// Fibers: each has a stack of its own, and runs until it waits for others. All are on one thread of
// the system, so thousands cost little, and a run repeats itself exactly. ThreadSanitizer still
// takes each for a thread: only the counters of a barrier order what fibers do. So whatever else of
// this file is not constant while they run is a relaxed atomic.
#pragma once

#include <pthread.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

namespace cuda_host {

class Fiber {
 public:
  virtual ~Fiber() = default;
  virtual void run() {}

 private:
  friend class Queue;
  friend class Fibers;
  std::atomic<Fiber*> next_{};  // in the queue that it is in
  ucontext_t context_{};
  void* stack_ = nullptr;
  size_t size_ = 0;
  void* sanitizer_ = nullptr;
};

// First in, first out.
class Queue {
 public:
  void push(Fiber* fiber) {
    fiber->next_.store(nullptr, std::memory_order_relaxed);
    Fiber* last = last_.exchange(fiber, std::memory_order_relaxed);
    (last ? last->next_ : first_).store(fiber, std::memory_order_relaxed);
  }

  // Null if it is empty.
  Fiber* pop() {
    Fiber* fiber = first_.load(std::memory_order_relaxed);
    if (fiber == nullptr) return nullptr;
    Fiber* next = fiber->next_.load(std::memory_order_relaxed);
    first_.store(next, std::memory_order_relaxed);
    if (next == nullptr) last_.store(nullptr, std::memory_order_relaxed);
    return fiber;
  }

 private:
  std::atomic<Fiber*> first_{}, last_{};
};

class Fibers {
 public:
  // Runs all of them to their ends.
  template <typename F>
  static void run(const std::vector<std::unique_ptr<F>>& fibers) {
    const Stacks stacks(fibers.size());
    for (size_t i = 0; i < fibers.size(); ++i) prepare(*fibers[i], stacks.place(i));
    place_home();
    left_.store(static_cast<int>(fibers.size()), std::memory_order_relaxed);
    begun_.store(true, std::memory_order_release);
    leave(false);
    if (left_.load(std::memory_order_acquire) > 0) {
      std::fputs("some threads wait for others, which have ended or wait for them\n", stderr);
      std::_Exit(1);
    }
#ifdef __SANITIZE_THREAD__
    for (const auto& fiber : fibers) __tsan_destroy_fiber(fiber->sanitizer_);
#endif
  }

  static Fiber* running() { return running_.load(std::memory_order_relaxed); }

  // The running fiber waits until `wake` has its queue.
  static void wait(Queue& queue) {
    queue.push(running());
    leave(false);
  }

  static void wake(Queue& queue) {
    while (Fiber* fiber = queue.pop()) ready_.push(fiber);
  }

 private:
  static constexpr size_t kStack = 128 * 1024;

  struct Stacks {
    explicit Stacks(size_t count) : size(count * kStack) {
      start = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (start == MAP_FAILED) std::perror("stacks"), std::_Exit(1);
    }
    ~Stacks() { munmap(start, size); }
    Stacks(const Stacks&) = delete;
    void* place(size_t i) const { return static_cast<char*>(start) + i * kStack; }

    size_t size;
    void* start;
  };

  static void prepare(Fiber& fiber, void* stack) {
    getcontext(&fiber.context_);
    fiber.stack_ = fiber.context_.uc_stack.ss_sp = stack;
    fiber.size_ = fiber.context_.uc_stack.ss_size = kStack;
    makecontext(&fiber.context_, enter, 0);
    // AddressSanitizer would forget at each switch what it knows of the stack.
    fiber.context_.uc_stack.ss_size = 0;
#ifdef __SANITIZE_THREAD__
    fiber.sanitizer_ = __tsan_create_fiber(0);
#endif
    ready_.push(&fiber);
  }

  // The program itself, as a fiber.
  static void place_home() {
    pthread_attr_t attributes;
    if (pthread_getattr_np(pthread_self(), &attributes) != 0) std::abort();
    pthread_attr_getstack(&attributes, &home_.stack_, &home_.size_);
    pthread_attr_destroy(&attributes);
#ifdef __SANITIZE_THREAD__
    home_.sanitizer_ = __tsan_get_current_fiber();
#endif
    running_.store(&home_, std::memory_order_relaxed);
  }

  static void enter() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
    begun_.load(std::memory_order_acquire);  // after all that the program did before
    running()->run();
    leave(true);
  }

  // Runs the next fiber that can, or the program.
  static void leave(bool for_good) {
    Fiber* from = running();
    Fiber* to = ready_.pop();
    if (to == nullptr) to = &home_;
    running_.store(to, std::memory_order_relaxed);
    [[maybe_unused]] const void* stack = to->stack_;
    [[maybe_unused]] const size_t size = to->size_;
    [[maybe_unused]] void* sanitizer = to->sanitizer_;
    // Before all that the program does after; so it is the last use of a fiber.
    if (for_good) left_.fetch_sub(1, std::memory_order_acq_rel);
#ifdef __SANITIZE_ADDRESS__
    void* frames = nullptr;
    __sanitizer_start_switch_fiber(for_good ? nullptr : &frames, stack, size);
#endif
#ifdef __SANITIZE_THREAD__
    __tsan_switch_to_fiber(sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
    if (for_good) setcontext(&to->context_);
    swapcontext(&from->context_, &to->context_);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(frames, nullptr, nullptr);
#endif
  }

  static inline Fiber home_;
  static inline Queue ready_;
  static inline std::atomic<Fiber*> running_;
  static inline std::atomic<int> left_;
  static inline std::atomic<bool> begun_;
};

class Barrier {
 public:
  explicit Barrier(int fibers) : expected_(fibers), missing_(fibers) {}

  void wait() {
    if (arrive()) return;
    Fibers::wait(waiting_);
    phase_.load(std::memory_order_acquire);
  }

  // The fiber has ended: from now on nobody waits for it.
  void leave() {
    expected_.fetch_sub(1, std::memory_order_relaxed);
    arrive();
  }

 private:
  // Whether it was the last.
  bool arrive() {
    if (missing_.fetch_sub(1, std::memory_order_acq_rel) != 1) return false;
    missing_.store(expected_.load(std::memory_order_relaxed), std::memory_order_relaxed);
    phase_.fetch_add(1, std::memory_order_release);
    Fibers::wake(waiting_);
    return true;
  }

  std::atomic<int> expected_, missing_;
  std::atomic<uint32_t> phase_{0};
  Queue waiting_;
};

}  // namespace cuda_host
