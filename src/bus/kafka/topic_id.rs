//! A topic's id: a topic that is deleted and made again under its name is another one, with offsets of its own
//! (KIP-516). librdkafka tells ids by DescribeTopics only, which the Rust binding does not have.

#![allow(
    unsafe_code,
    reason = "calls librdkafka's C interface: every pointer is made and destroyed here"
)]

use std::ffi::CString;
use std::time::Duration;

use rdkafka::bindings::*;
use rdkafka::client::Client;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;

/// 128 bits; zero where the broker is too old to have ids (before 2.8).
pub type TopicId = (i64, i64);

/// Destroys what librdkafka has made, whichever way the function is left.
struct Owned<T>(*mut T, unsafe extern "C" fn(*mut T));

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the pointer came from the constructor that belongs to this destructor, and is not used again.
            unsafe { self.1(self.0) };
        }
    }
}

/// Asks the broker for the id of one topic.
///
/// # Errors
///
/// The broker does not answer in time, or does not know the topic.
pub fn of(client: &Client<super::Context>, topic: &str, patience: Duration) -> KafkaResult<TopicId> {
    let name = CString::new(topic)?;
    let patience_ms = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    let failed = |code: RDKafkaRespErr| Err(KafkaError::MetadataFetch(RDKafkaErrorCode::from(code)));
    // SAFETY: `client` lives across all calls and so does its native handle. Each object is null-checked or
    // accepted as null by the calls it is given to, and destroyed once, by `Owned`, in the reverse order of its
    // making, events before their queue. The lists and the id belong to the event and are read before it is
    // destroyed.
    unsafe {
        let handle = client.native_ptr();
        let mut names = [name.as_ptr()];
        let topics = Owned(
            rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len()),
            rd_kafka_TopicCollection_destroy,
        );
        let operation = rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let options = Owned(
            rd_kafka_AdminOptions_new(handle, operation),
            rd_kafka_AdminOptions_destroy,
        );
        let mut error = [0; 256];
        let set = rd_kafka_AdminOptions_set_request_timeout(
            options.0,
            patience_ms,
            error.as_mut_ptr(),
            error.len(),
        );
        if set != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return failed(set);
        }
        let queue = Owned(rd_kafka_queue_new(handle), rd_kafka_queue_destroy);
        rd_kafka_DescribeTopics(handle, topics.0, options.0, queue.0);
        let event = Owned(rd_kafka_queue_poll(queue.0, patience_ms), rd_kafka_event_destroy);
        if event.0.is_null() {
            return failed(RDKafkaRespErr::RD_KAFKA_RESP_ERR__TIMED_OUT);
        }
        let error = rd_kafka_event_error(event.0);
        if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return failed(error);
        }
        let result = rd_kafka_event_DescribeTopics_result(event.0);
        let mut count = 0;
        let found = if result.is_null() {
            std::ptr::null_mut()
        } else {
            rd_kafka_DescribeTopics_result_topics(result, &mut count)
        };
        if found.is_null() || count == 0 {
            return failed(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART);
        }
        let error = rd_kafka_error_code(rd_kafka_TopicDescription_error(*found));
        if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return failed(error);
        }
        let id = rd_kafka_TopicDescription_topic_id(*found);
        Ok((
            rd_kafka_Uuid_most_significant_bits(id),
            rd_kafka_Uuid_least_significant_bits(id),
        ))
    }
}
